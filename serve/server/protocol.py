"""One connection: HTTP/1.1 on llhttp through uvicorn's protocol, with bounds on all that a client may ask of it.

Bounded are the head, in bytes and in time; requests sent before the one ahead of them is answered; and the time that a
client may leave an answer unread. What is no HTTP gets a problem of the contract. No error leaves this module.
"""

import asyncio
import logging
import socket
import struct
import sys
from typing import Any, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serve.observability.metrics import Metrics
from serve.observability.request_ids import request_id_of
from serve.problems import problem, problem_body
from serve.server.connections import ConnectionLimiter
from serve.server.framing import Fault, check_framing
from serve.server.transport import CoalescingTransport

log = logging.getLogger("serve.access")

# How long what a refused client still sends is read, because closing on it would cost the client its answer.
_LINGER_SECONDS: Final = 2.0
# Bytes a request line and its headers may have together; llhttp itself sets no limit.
_MAX_HEAD_BYTES: Final = 64 * 1024
# Its target, path and query: decoding takes time, and what a query may have is far less.
_MAX_TARGET_BYTES: Final = 16 * 1024
# Header fields, because each takes far more memory than its bytes; ordinary requests have ten or twenty.
_MAX_HEADERS: Final = 128
# Requests that may wait behind one that is being answered; browsers send none, and the few that do send a handful.
_MAX_PIPELINED: Final = 8
# What an answer has to be read at, on average and after a start.
_BYTES_A_SECOND: Final = 64 * 1024


def _too_large(detail: str) -> Fault:
    return Fault(431, "Request Header Fields Too Large", detail)


_BYTES_LIMIT: Final = _too_large(f"The request's head is larger than the limit of {_MAX_HEAD_BYTES} bytes.")
_TARGET_LIMIT: Final = Fault(
    414, "URI Too Long", f"The request's target is longer than the limit of {_MAX_TARGET_BYTES} bytes."
)
_HEADERS_LIMIT: Final = _too_large(f"The request has more headers than the limit of {_MAX_HEADERS}.")
# How often a client that closed its side is looked at, and the state of a TCP connection that it has reset (tcp(7)).
_LOOK_SECONDS: Final = 0.1
_TCP_CLOSE: Final = 7
# Of SO_LINGER: on, and no seconds.
_FORGET: Final = struct.pack("ii", 1, 0)
_NO_HTTP: Final = Fault(400, "Bad Request", "The request is not HTTP/1.1 as RFC 9112 has it.")


class _NoMore(Exception):
    """Raised in a parser callback, which ends the parsing."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with bounds, and the contract's own words for what is no HTTP.

    all_connections: of this server, which this one makes known whom it waits for. head_seconds: for a head to come.
    body_seconds: for an answer to be read, and one more each 64 KiB. metrics: where refusals are counted, if anywhere.
    """

    all_connections: "ConnectionLimiter[HttpProtocol]" = ConnectionLimiter(sys.maxsize)
    head_seconds = 10.0
    body_seconds = 20.0
    metrics: Metrics | None = None
    _head_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None
    _before_head = True
    _begun = False  # a head, and not ended it
    _running: RequestResponseCycle | None = None  # whose answer is being made
    _head_bytes = 0  # of the request line and headers so far, and of trailers
    _kept_bytes = 0  # received since the parser last handed something on
    _in_body = False
    _headers = 0
    _fault = _NO_HTTP  # what ends the parsing, where the parser does
    _refused = False
    _received = b""  # in which the head that is being parsed came

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(CoalescingTransport(transport, self.loop, self.body_seconds))  # type: ignore[arg-type]
        if self.all_connections.opened(self):
            self._wait_for_head()
        else:
            detail = "The server has as many connections as it may have, and all are at work; try again in a moment."
            self._refuse(503, "Service Unavailable", detail, "Retry-After: 1\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self.all_connections.closed(self)
        self._stop_waiting_for_head()
        self._stop_waiting_for_reader()
        super().connection_lost(exc)
        # Which uvicorn does only where the client has closed and not reset it: its timer would keep all this alive.
        self._unset_keepalive_if_required()
        self.pipeline.clear()

    def evict(self) -> None:
        """Close at once, and have the system forget what was not read: another connection needs the room."""
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FORGET)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._before_head and self._head_timer is None:  # bytes between requests end uvicorn's own waiting
            self._wait_for_head()
        if self._kept_bytes > _MAX_HEAD_BYTES:
            self._fault = _BYTES_LIMIT
            self.send_400_response("")

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer the complete requests of a client that closed its side: it may still read (shutdown(2), SHUT_WR).

        One that has gone altogether looks the same until something is sent to it, which its system then resets: so
        send what every HTTP/1.1 client ignores, and look.
        """
        if self._end_after_answers():
            self.loop.call_later(_LOOK_SECONDS, self._see_whether_it_is_gone)
        else:
            self.transport.close()
        return True  # asyncio's own closing would forget what this transport holds back

    def _see_whether_it_is_gone(self) -> None:
        if self.transport.is_closing():
            return
        if self._running and not self._running.response_started and self._running.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._look_for_reset()

    def _look_for_reset(self) -> None:
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            self.transport.abort()
        else:
            self.loop.call_later(_LOOK_SECONDS, self._look_for_reset)

    def pause_writing(self) -> None:
        """Its client does not read: it may be made to go, and does so by itself in time."""
        super().pause_writing()
        self.all_connections.mark_idle(self)
        unread = self.transport.get_write_buffer_size()
        self.all_connections.leaves_unread(self, unread)
        self._unread_timer = self.loop.call_later(self.body_seconds + unread / _BYTES_A_SECOND, self.evict)

    def resume_writing(self) -> None:
        self._stop_waiting_for_reader()
        self.all_connections.reads(self)
        if self.cycle is not None and not (self.cycle.response_complete or self.cycle.more_body):
            self.all_connections.mark_busy(self)
        super().resume_writing()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise _NoMore
        self._head_bytes = self._kept_bytes = self._headers = 0
        self._begun = True
        self._in_body = False
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._head_bytes + len(url) > _MAX_TARGET_BYTES:
            self._fault = _TARGET_LIMIT
            raise _NoMore
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + len(": \r\n"))
        self._headers += 1
        if self._headers > _MAX_HEADERS:
            self._fault = _HEADERS_LIMIT
            raise _NoMore
        if not self._in_body:  # or it is a trailer, which nobody here wants
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version.encode())
        if not self._received.startswith(line) and b"\n" + line not in self._received:
            raise _NoMore  # RTSP or ICE, which llhttp takes too
        if self._is_to_be_declined():
            return
        if fault := check_framing(version, self.url, self.headers):
            self._fault = fault
            raise _NoMore
        if version == "1.0":  # which has no interim answers (RFC 9110, 10.1.1)
            self.expect_100_continue = False
        self._stop_waiting_for_head()
        self._before_head = self._begun = False
        self._in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._kept_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_to_be_declined():
            return
        self._kept_bytes = 0
        self.all_connections.mark_busy(self)
        if not self.parser.should_keep_alive():  # also by a trailer; the parser reads no further
            self.cycle.keep_alive = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if not self.pipeline or self.pipeline[-1][0].more_body:
            self.all_connections.mark_idle(self)
        self._before_head = not self.pipeline
        if self._before_head and self._begun and self._head_timer is None:  # it began behind the one just answered
            self._wait_for_head()
        super().on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _should_upgrade(self) -> bool:
        """Never: nothing but HTTP is spoken here, so no need to read what a `Connection` header lists."""
        return False

    def send_400_response(self, msg: str) -> None:
        self._refuse(*self._fault)

    def _feed(self, data: bytes) -> None:
        self._kept_bytes += len(data)
        self._received = self._received + data if self._begun else data
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")
        if not self._begun:
            self._received = b""

    def _is_to_be_declined(self) -> bool:
        """Whether the request being parsed wants another protocol, and is parsed anew without that wish."""
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _decline_upgrade(self, rest: bytes) -> None:
        """Go on with HTTP/1.1, as RFC 9110 (7.8) lets a server do.

        llhttp takes whatever follows such a head for the other protocol's, and httptools then for another request,
        though it is this one's body; so the head is parsed again without its Upgrade. rest: what follows it.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":  # answered by the routes like any method they do not have; nothing can follow
            self._refused = True
            self.cycle.keep_alive = False
            return
        headers = b"".join(b"%s: %s\r\n" % (name, value) for name, value in self.headers if name != b"upgrade")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._feed(b"%s %s HTTP/%s\r\n%s\r\n%s" % (method, self.url, version, headers, rest))

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._miss_head)

    def _stop_waiting_for_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_waiting_for_reader(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _miss_head(self) -> None:
        """Close a connection whose client has begun no request, and refuse one that does not get on with it."""
        self._head_timer = None
        if self._begun:
            detail = f"The request's head was not complete within the limit of {self.head_seconds:g} s."
            self._refuse(408, "Request Timeout", detail)
        else:
            self.transport.close()

    def _count(self, length: int) -> None:
        self._kept_bytes = 0
        self._head_bytes += length
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._fault = _BYTES_LIMIT
            raise _NoMore

    def _end_after_answers(self) -> bool:
        """Have the connection end once its complete requests are answered; whether there are any."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        last: RequestResponseCycle | None = self.cycle
        if self.cycle.more_body:  # it will never be whole; those before it are answered
            if self.pipeline and self.pipeline[0][0] is self.cycle:
                self.pipeline.popleft()
            elif self._running is self.cycle:
                return False
            last = self.pipeline[0][0] if self.pipeline else self._running
        if last is not None:
            last.keep_alive = False
        return True

    def _refuse(self, status: int, title: str, detail: str, headers: str = "") -> None:
        """Answer what never becomes a request, and close once the client has had the time to read that."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if self._end_after_answers():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started:
                self.transport.close()
                return
            # It is this request's own body that is wrong: whoever waits for the rest of it waits no more, and counts
            # and logs it with this status.
            self.cycle.waiting_for_100_continue = False
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            scope = cast(dict[str, Any], self.cycle.scope)
            scope["refused"] = status
            method = scope["method"]
            request_id, path = scope.setdefault("request_id", request_id_of(scope["headers"])), scope["path"]
        else:
            method = self.parser.get_method().decode() if self._begun else ""
            request_id, path = request_id_of(self.headers if self._begun else ()), ""
            fields = {"request_id": request_id, "client": self.client[0] if self.client else None, "status": status}
            log.info("%d %s", status, detail, extra={"fields": fields})
            if self.metrics is not None:
                self.metrics.count_refused_connection(status)
        body, media_type = problem_body(path, problem(status, title, detail))
        head = (
            f"HTTP/1.1 {status} {title}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n"
            f"X-Request-ID: {request_id}\r\nConnection: close\r\n{headers}\r\n"
        )
        self.transport.write(head.encode() + (b"" if method == "HEAD" else body))
        self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)
