"""uvicorn on a listening socket: speaks HTTP until a signal, then drains. The only module that imports uvicorn.

No error leaves this module.
"""

import asyncio
import logging
import signal
import socket
import sys
import uuid
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.config import Config
from serve.connections import Connections
from serve.lifecycle import Lifecycle
from serve.problems import MEDIA_TYPE, encode, problem

log = logging.getLogger("serve.access")

# How long connections may take to close, once all uploads are answered: within the grace period with what it keeps.
_CLOSING_SECONDS: Final = 1
# How long what a refused client still sends is read, because closing on it would cost the client its answer.
_LINGER_SECONDS: Final = 2.0
# Bytes a request line and its headers may have together; llhttp itself sets no limit.
_MAX_HEAD_BYTES: Final = 64 * 1024


def run(app: Callable[..., Any], config: Config, lifecycle: Lifecycle, listener: socket.socket) -> None:
    """Serve `app` on `listener` until SIGINT or SIGTERM and all accepted requests are answered."""

    class Bounded(_HttpProtocol):
        all_connections = Connections(config.max_connections)
        head_seconds = config.head_timeout_ms / 1000

    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of what clients do, and so could they
    settings = uvicorn.Config(
        app,
        http=Bounded,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,  # middleware.py writes it, with the request id
        server_header=False,
        timeout_graceful_shutdown=_CLOSING_SECONDS,
        timeout_keep_alive=config.keep_alive_seconds,
    )
    _DrainingServer(settings, lifecycle).run(sockets=[listener])


class _HeadTooLarge(Exception):
    """Raised in a parser callback, which ends the parsing."""


class _HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol on llhttp, with bounded heads and the contract's own words for what is no HTTP.

    all_connections: of this server, which this one makes known whom it waits for. head_seconds: for a head to come.
    """

    all_connections: "Connections[_HttpProtocol]" = Connections(sys.maxsize)
    head_seconds = 10.0
    _head_timer: asyncio.TimerHandle | None = None
    _before_head = True
    _head_bytes = 0  # of the request line and headers so far, and of trailers
    _kept_bytes = 0  # received since the parser last handed something on
    _in_body = False
    _too_large = False
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_OneWrite(transport, self.loop))  # type: ignore[arg-type]
        if self.all_connections.opened(self):
            self._wait_for_head()
        else:
            detail = "The server has as many connections as it may have, and all are at work; try again in a moment."
            self._refuse(503, "Service Unavailable", detail, "Retry-After: 1\r\n")
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.all_connections.closed(self)
        self._stop_waiting_for_head()
        super().connection_lost(exc)

    def evict(self) -> None:
        """Close at once: another connection needs the room."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._kept_bytes += len(data)
        super().data_received(data)
        if self._before_head and self._head_timer is None:  # bytes between requests end uvicorn's own waiting
            self._wait_for_head()
        if self._kept_bytes > _MAX_HEAD_BYTES:
            self._too_large = True
            self.send_400_response("")

    def on_message_begin(self) -> None:
        self._head_bytes = self._kept_bytes = 0
        self._in_body = False
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + len(": \r\n"))
        if not self._in_body:  # or it is a trailer, which nobody here wants
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_waiting_for_head()
        self._before_head = False
        self._in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._kept_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._kept_bytes = 0
        self.all_connections.works(self)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if not self.pipeline:
            self.all_connections.waits(self)
            self._before_head = True
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        if self._too_large:
            detail = f"The request's head is larger than the limit of {_MAX_HEAD_BYTES} bytes."
            self._refuse(431, "Request Header Fields Too Large", detail)
        else:
            self._refuse(400, "Bad Request", "The request is not HTTP/1.1 as RFC 9112 has it.")

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._miss_head)

    def _stop_waiting_for_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _miss_head(self) -> None:
        """Close a connection whose client has begun no request, and refuse one that does not get on with it."""
        self._head_timer = None
        if self._kept_bytes or self._head_bytes:
            detail = f"The request's head was not complete within the limit of {self.head_seconds:g} s."
            self._refuse(408, "Request Timeout", detail)
        else:
            self.transport.close()

    def _count(self, length: int) -> None:
        self._kept_bytes = 0
        self._head_bytes += length
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._too_large = True
            raise _HeadTooLarge

    def _refuse(self, status: int, title: str, detail: str, headers: str = "") -> None:
        """Answer what never becomes a request, and close once the client has had the time to read that."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            if not self.cycle.more_body or self.cycle.response_started or self.pipeline:
                # An answer is still owed to the request before; after it the connection ends.
                self.cycle.keep_alive = False
                if self.cycle.more_body:
                    self.transport.close()
                return
            # It is this request's own body that is wrong: whoever waits for the rest of it waits no more.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        request_id = uuid.uuid4().hex
        fields = {"request_id": request_id, "client": self.client[0] if self.client else None, "status": status}
        log.info("%d %s", status, detail, extra={"fields": fields})
        body = encode(problem(status, title, detail))
        head = (
            f"HTTP/1.1 {status} {title}\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
            f"X-Request-ID: {request_id}\r\nConnection: close\r\n{headers}\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)


class _OneWrite:
    """A transport that sends an answer's head together with what follows it.

    uvicorn writes them apart, which costs a system call, and wakes the client for half an answer.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            self._head += data
            self._send()
        else:
            self._head = data
            self._loop.call_soon(self._send)  # should nothing follow

    def write_eof(self) -> None:
        self._send()
        self._transport.write_eof()

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


class _DrainingServer(uvicorn.Server):
    """uvicorn stops listening at once when told to stop; this one first answers what it has accepted.

    Until then it goes on listening, so that probes and new requests get their 503 rather than a closed port.
    """

    def __init__(self, settings: uvicorn.Config, lifecycle: Lifecycle) -> None:
        super().__init__(settings)
        self._lifecycle = lifecycle
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain, then stop; a second Ctrl-C waits for nobody."""
        again = not self._lifecycle.begin_drain()
        if self._loop is None:
            self.should_exit = True
        elif not again:
            self._loop.call_soon_threadsafe(self._start_draining)
        elif sig == signal.SIGINT:
            self._loop.call_soon_threadsafe(self._lifecycle.end_now)

    def _start_draining(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self._lifecycle.drain()
        self.should_exit = True
