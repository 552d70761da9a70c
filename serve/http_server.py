"""uvicorn on a listening socket: speaks HTTP until a signal, then drains. The only module that imports uvicorn.

No error leaves this module.
"""

import asyncio
import json
import logging
import signal
import socket
import uuid
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.lifecycle import Lifecycle
from serve.problems import MEDIA_TYPE, problem

# How long connections may take to close, once all uploads are answered.
_CLOSING_SECONDS: Final = 5
# Bytes a request line and its headers may have together; llhttp itself sets no limit.
_MAX_HEAD_BYTES: Final = 64 * 1024


def run(app: Callable[..., Any], lifecycle: Lifecycle, listener: socket.socket) -> None:
    """Serve `app` on `listener` until SIGINT or SIGTERM and all accepted requests are answered."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    settings = uvicorn.Config(
        app,
        http=_HttpProtocol,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,  # middleware.py writes it, with the request id
        server_header=False,
        timeout_graceful_shutdown=_CLOSING_SECONDS,
    )
    _DrainingServer(settings, lifecycle).run(sockets=[listener])


class _HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol on llhttp, with bounded headers and the contract's own words for what is no HTTP."""

    _head_bytes = 0
    _in_head = True

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(
                431, "Request Header Fields Too Large", f"The headers exceed the limit of {_MAX_HEAD_BYTES} bytes."
            )

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "Bad Request", "The request is not HTTP/1.1 as RFC 9112 has it.")

    def _refuse(self, status: int, title: str, detail: str) -> None:
        """Answer what never becomes a request, and close."""
        body = json.dumps(problem(status, title, detail)).encode() + b"\n"
        head = (
            f"HTTP/1.1 {status} {title}\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
            f"X-Request-ID: {uuid.uuid4().hex}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


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
        """Drain, then stop; a second Ctrl-C stops at once."""
        again = not self._lifecycle.begin_drain()
        if self._loop is None:
            self.should_exit = True
        elif not again:
            self._loop.call_soon_threadsafe(self._start_draining)
        elif sig == signal.SIGINT:
            self.should_exit = self.force_exit = True

    def _start_draining(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self._lifecycle.drain()
        self.should_exit = True
