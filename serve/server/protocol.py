"""One connection: uvicorn's HTTP/1.1 protocol (on llhttp) with limits on what a client may send and leave unread.

Limited are the head, in bytes and in time; pipelined requests; and the time that a client may take to read a response.
Malformed requests are answered with problem+json.
"""

import asyncio
import logging
import socket
import struct
import sys
from typing import Any, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from serve.errors import HeadTooLarge, HeadTooSlow, MalformedRequest, RequestError, TargetTooLong, TooManyConnections
from serve.observability.correlation import request_id_from
from serve.observability.metrics import Metrics
from serve.observability.record import CLIENT_DISCONNECTED, record_of
from serve.problems import RULES, problem_body, problem_from, retry_after
from serve.scheduling.in_flight import BYTES_PER_SECOND
from serve.server.connections import ConnectionLimiter, KeptAlive
from serve.server.framing import check_framing
from serve.server.transport import CoalescingTransport

log = logging.getLogger("serve.access")

# Bytes of a request line and its headers together; llhttp itself sets no limit.
_MAX_HEAD_BYTES: Final = 64 * 1024
# Bytes of the target (path and query): decoding takes time, and useful queries are far shorter.
_MAX_TARGET_BYTES: Final = 16 * 1024
# Number of headers, because each takes far more memory than its bytes; ordinary requests have ten or twenty.
_MAX_HEADERS: Final = 128
# Pipelined requests that may wait behind the one being answered; browsers send none, other clients a handful.
_MAX_PIPELINED: Final = 8
_MAX_DIGITS: Final = 20  # of a Content-Length; with more, most are leading zeros

_BYTES_LIMIT: Final = HeadTooLarge(f"The request's head is larger than the limit of {_MAX_HEAD_BYTES} bytes.")
_TARGET_LIMIT: Final = TargetTooLong(f"The request's target is longer than the limit of {_MAX_TARGET_BYTES} bytes.")
_HEADERS_LIMIT: Final = HeadTooLarge(f"The request has more headers than the limit of {_MAX_HEADERS}.")
# Bytes at the end of a body that are compared to find where the next request begins.
_TAIL_BYTES: Final = 16
# How often a half-closed connection is checked, and the TCP state of one that the client has reset (tcp(7)).
_CHECK_SECONDS: Final = 0.1
_TCP_CLOSE: Final = 7
# SO_LINGER on with 0 seconds: closing resets the connection and discards unsent data.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_NOT_HTTP: Final = MalformedRequest("The request is not valid HTTP/1.1 (RFC 9112).")
# The titles of problems, RFC 9110's phrases; Python's differ from version to version.
STATUS_LINE.update({rule.status: f"HTTP/1.1 {rule.status} {rule.title}\r\n".encode() for rule in RULES.values()})


class _StopParsing(Exception):
    """Raised in a callback of the parser to end parsing."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits on size, headers and time; malformed requests get problem+json.

    Attributes:
        all_connections: the server's connections, told here which are busy and which idle.
        kept_alive: those that wait for their next request.
        head_seconds: time for a head to arrive.
        body_seconds: time for a response to be read; each 64 KiB adds one more second.
        metrics: where refused connections are counted, if set.
        body_left: how many bytes of the latest request's body are to come; 0 or less if it is chunked.
    """

    transport: CoalescingTransport  # type: ignore[assignment]
    all_connections: "ConnectionLimiter[HttpProtocol]" = ConnectionLimiter(sys.maxsize)
    kept_alive: "KeptAlive[HttpProtocol]" = KeptAlive(5.0)
    head_seconds = 10.0
    body_seconds = 20.0
    metrics: Metrics | None = None
    _head_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None
    _before_head = True
    _begun = False  # whether a head has begun and not ended
    _running: RequestResponseCycle | None = None  # the request being answered
    _task: asyncio.Task[None] | None = None  # its task
    _head_bytes = 0  # of request line, headers and trailers so far
    _kept_bytes = 0  # received since the parser last called back
    _in_body = False
    body_left = 0
    _headers = 0
    _refusal: RequestError = _NOT_HTTP  # what to answer when parsing ends
    _refused = False
    _received = b""  # the data that the current head arrived in
    _body_end = b""  # the last bytes of the latest body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        own = CoalescingTransport(transport, self.loop, self.body_seconds, self._is_sending)
        super().connection_made(own)  # type: ignore[arg-type]
        if self.all_connections.add(self):
            self._wait_for_head()
        else:
            self._refuse(
                TooManyConnections(
                    "The server has reached its limit of connections, and all of them are busy; try again in a moment."
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self.all_connections.remove(self)
        self._stop_waiting_for_head()
        self._stop_waiting_for_reader()
        if self._running is not None and not self._running.response_complete:
            self._end_task(CLIENT_DISCONNECTED)
        super().connection_lost(exc)
        self.kept_alive.discard(self)
        self.pipeline.clear()

    def evict(self) -> None:
        """Closes the connection at once and discards unsent data, because another connection needs the room."""
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.lingering:
            self.transport.drop(len(data))
            return
        self.kept_alive.discard(self)
        self._feed(data)
        if self._before_head and self._head_timer is None:
            self._wait_for_head()
        if self._kept_bytes > _MAX_HEAD_BYTES:
            self._refusal = _BYTES_LIMIT
            self.send_400_response("")

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answers the complete requests of a client that closed its side; it may still read (shutdown(2), SHUT_WR).

        A client that has gone looks the same until something is sent to it and its system answers with a reset. So
        this sends an interim response, which every HTTP/1.1 client ignores, and checks for the reset.
        """
        if self._end_after_answers():
            self.loop.call_later(_CHECK_SECONDS, self._probe_half_closed)
        else:
            self.transport.close()
        return True  # or asyncio would close, and lose what this transport has not written yet

    def _probe_half_closed(self) -> None:
        if self.transport.is_closing():
            return
        if self._running and not self._running.response_started and self._running.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._check_for_reset()

    def _check_for_reset(self) -> None:
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
            self.transport.abort()
        else:
            self.loop.call_later(_CHECK_SECONDS, self._check_for_reset)

    def pause_writing(self) -> None:
        """Marks the connection as unread: it may be evicted from now on, and is after a time limit."""
        super().pause_writing()
        self.all_connections.mark_idle(self)
        unread = self.transport.get_write_buffer_size()
        self.all_connections.set_unread(self, unread)
        self._unread_timer = self.loop.call_later(self.body_seconds + unread / BYTES_PER_SECOND, self.evict)

    def resume_writing(self) -> None:
        self._stop_waiting_for_reader()
        self.all_connections.clear_unread(self)
        if self.cycle is not None and not (self.cycle.response_complete or self.cycle.more_body):
            self.all_connections.mark_busy(self)
        super().resume_writing()

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise _StopParsing
        self._head_bytes = self._kept_bytes = self._headers = 0
        self._begun = True
        self._in_body = False
        self.body_left = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._head_bytes + len(url) > _MAX_TARGET_BYTES:
            self._refusal = _TARGET_LIMIT
            raise _StopParsing
        self._kept_bytes = 0
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._kept_bytes = 0
        self._head_bytes += len(name) + len(value) + len(": \r\n")
        self._headers += 1
        if self._headers > _MAX_HEADERS or self._head_bytes > _MAX_HEAD_BYTES:
            self._refusal = _HEADERS_LIMIT if self._headers > _MAX_HEADERS else _BYTES_LIMIT
            raise _StopParsing
        if not self._in_body:  # or it is a trailer, which is not used
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            elif name == b"content-length" and len(value) <= _MAX_DIGITS and value.isdigit():
                self.body_left = int(value)
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version.encode())
        before = (b"\n", self._body_end)  # of a request in the same data, if there is any
        if not self._received.startswith(line) and not any(end + line in self._received for end in before if end):
            raise _StopParsing  # RTSP or ICE, which llhttp accepts too
        if self.parser.should_upgrade() and self._wants_upgrade():
            return
        if refusal := check_framing(version, self.url, self.headers):
            self._refusal = refusal
            raise _StopParsing
        if version == "1.0":  # which has no interim responses (RFC 9110, 10.1.1)
            self.expect_100_continue = False
        self._stop_waiting_for_head()
        self._before_head = self._begun = False
        self._in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._kept_bytes = 0
        self.body_left -= len(body)
        self._body_end = body[-_TAIL_BYTES:]
        # uvicorn adds to a bytearray and copies that: twice as many copies as a chunk needs that is passed on alone.
        kept = self.cycle.body
        if not kept:
            self.cycle.body = b""  # type: ignore[assignment]
        elif isinstance(kept, bytes):
            self.cycle.body = bytearray(kept)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and self._wants_upgrade():
            return
        self._kept_bytes = 0
        if not self.cycle.response_complete:
            self.all_connections.mark_busy(self)
        if not self.parser.should_keep_alive():  # may be set by a trailer; the parser reads no further
            self.cycle.keep_alive = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Starts the next pipelined request, or waits for one; in place of uvicorn's, which sets a timer each time."""
        self.transport.flush()
        if not self.pipeline or self.pipeline[-1][0].more_body:
            self.all_connections.mark_idle(self)
        self.server_state.total_requests += 1
        if self._running is not None:
            self._running.body = b""  # type: ignore[assignment]  # what the application has left unread
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self._before_head = not self.pipeline
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._begun and self._head_timer is None:  # it began while this request was answered
            self._wait_for_head()
        elif not self._begun:
            self.kept_alive.add(self)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        self._task = task = self.loop.create_task(cycle.run_asgi(app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _end_task(self, status: int, reason: str | None = None) -> None:
        """Ends the task of the request being answered, for which no one waits any more."""
        if self._running is not None and self._task is not None:
            self._running.disconnected = True  # uvicorn sets it for the last of several pipelined requests only
            record = record_of(cast(dict[str, Any], self._running.scope))
            if not record.closed:
                record.close(status, reason)
                self.loop.call_soon(self._task.cancel)  # soon, because it may not have begun

    def _is_sending(self) -> bool:
        """Returns whether the client may be sending more, although no further request will be answered."""
        return self._refused or (self.cycle is not None and self.cycle.response_complete and self.cycle.more_body)

    def shutdown(self) -> None:
        """Closes the connection once its request is answered and a client that is sending has had time to read."""
        self.transport.shorten_linger()
        if not self.transport.lingering:
            super().shutdown()

    def _should_upgrade(self) -> bool:
        """Returns False, because only HTTP is supported; so the `Connection` header need not be parsed."""
        return False

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal)

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

    def _wants_upgrade(self) -> bool:
        """Returns whether an upgrade is to another protocol; the request is then parsed again without it."""
        return self.parser.get_method() != b"CONNECT"

    def _decline_upgrade(self, rest: bytes) -> None:
        """Continues with HTTP/1.1, as RFC 9110 (7.8) allows.

        llhttp takes what follows such a head for data of the other protocol, and httptools takes it for the next
        request, but it is the body of this one. So the head is parsed again without its Upgrade.

        Args:
            rest: the data after the head.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":  # the routes answer it like any unknown method; nothing can follow
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
        """Closes a connection without a request, or refuses a request whose head is not complete in time."""
        self._head_timer = None
        if self._begun:
            limit = f"{self.head_seconds:g} s"
            self._refuse(HeadTooSlow(f"The request's head was not complete within the limit of {limit}."))
        else:
            self.transport.close()

    def _end_after_answers(self) -> bool:
        """Closes the connection once its complete requests are answered; returns whether there are any."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        last: RequestResponseCycle | None = self.cycle
        if self.cycle.more_body:  # it will never be complete; only those before it are answered
            if self.pipeline and self.pipeline[0][0] is self.cycle:
                self.pipeline.popleft()
            elif self._running is self.cycle:
                return False
            last = self.pipeline[0][0] if self.pipeline else self._running
        if last is not None:
            last.keep_alive = False
        return True

    def _refuse(self, error: RequestError) -> None:
        """Answers what never becomes a request, and closes once the client has had time to read the response."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if self._end_after_answers():
            return
        problem = problem_from(error)
        status, reason = problem["status"], problem["reason"]
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started:
                self.transport.close()
                return
            # The error is in this request's body: the application stops waiting for the rest, and counts and logs the
            # request with this status.
            self._end_task(status, reason)
            scope = cast(dict[str, Any], self.cycle.scope)
            request_id, method, path = record_of(scope).request_id, scope["method"], scope["path"]
        else:
            method = self.parser.get_method().decode() if self._begun else ""
            request_id, path = request_id_from(self.headers if self._begun else ()), ""
            client = self.client[0] if self.client else None
            fields = {"request_id": request_id, "client": client, "status": status, "reason": reason}
            log.info("%d %s", status, error, extra={"fields": fields})
            if self.metrics is not None:
                self.metrics.count_refused_connection(status, reason)
        body, media_type = problem_body(path, problem)
        seconds = retry_after(error)
        advice = "" if seconds is None else f"Retry-After: {seconds}\r\n"
        head = (
            f"HTTP/1.1 {status} {problem['title']}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n"
            f"X-Request-ID: {request_id}\r\nConnection: close\r\n{advice}\r\n"
        )
        self.transport.write(head.encode() + (b"" if method == "HEAD" else body))
        self.transport.linger()
