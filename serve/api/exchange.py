"""One HTTP request and the response to it, as handlers see them."""

import asyncio
from contextlib import suppress
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from serve.observability.record import RequestRecord, record_of
from serve.scheduling.lifecycle import Lifecycle

EXCHANGE: Final = "serve.exchange"  # the key of an ASGI scope under which its exchange is
# Bytes of a body that the connection may drop after the response.
_DROPPED_BYTES: Final = 256 * 1024
_DROPPED_DIGITS: Final = 9  # of a Content-Length
_TOO_SLOW: Final = 408  # the rest would come too slowly as well
_CLOSE: Final = (b"connection", b"close")


class Exchange:
    """A request and its response.

    Args:
        scope: ASGI's, into which the exchange is put.
        receive: ASGI's.
        send: ASGI's.
        lifecycle: tells whether the server is shutting down, so that clients send their next request elsewhere.

    Attributes:
        scope: ASGI's.
        headers: by lower-case name; of several with one name the first.
        record: for the access log and the metrics.
        route: the template of the route that handles the request, once it is known.
        timing: `Server-Timing`, if images were classified and the client may see it.
    """

    __slots__ = ("_lifecycle", "_receive", "_send", "_unread", "headers", "record", "route", "scope", "timing")

    def __init__(self, scope: Scope, receive: Receive, send: Send, lifecycle: Lifecycle) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        self.record: RequestRecord = record_of(scope)
        self.route = ""
        self.timing: dict[str, str] = {}
        self._receive = receive
        self._send = send
        self._lifecycle = lifecycle
        # Whether a part of the body may be unread.
        self._unread = self.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self.headers
        scope[EXCHANGE] = self

    def header(self, name: bytes) -> str:
        """Returns a header's value; of several with one name the first, and an empty string if there is none."""
        return self.headers.get(name, b"").decode("latin-1")

    def header_list(self, name: bytes) -> list[str]:
        """Returns the values of all headers with a name."""
        if name not in self.headers:
            return []
        return [value.decode("latin-1") for key, value in self.scope["headers"] if key == name]

    async def next_chunk(self) -> bytes:
        """Returns the next bytes of the body, and nothing at its end; raises `ClientDisconnect`."""
        while self._unread:
            message = await self._receive()
            if message["type"] != "http.request":
                self._unread = False
                raise ClientDisconnect
            self._unread = message.get("more_body", False)
            if chunk := message.get("body", b""):
                self.record.bytes_in += len(chunk)
                return bytes(chunk)
        return b""

    async def send(self, message: Message) -> None:
        """ASGI's, with the headers that every response has.

        A connection whose request has not been read to its end is closed after the response (RFC 9112, section 9.6),
        unless so little is left that the connection drops it sooner than the client could open another.
        """
        record = self.record
        if message["type"] == "http.response.start":
            if not record.closed:
                record.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", record.request_id.encode("ascii"))]
            if self._unread and message["status"] != _TOO_SLOW and self._little_is_left():
                self._unread = False
            elif self._unread:
                await self._drop_arrived()
            if self._unread or self._lifecycle.draining:
                headers.append(_CLOSE)
            message = {**message, "headers": headers}
        else:
            record.bytes_out += len(message.get("body", b""))
        await self._send(message)

    def _little_is_left(self) -> bool:
        length = self.headers.get(b"content-length", b"")
        return (
            len(length) <= _DROPPED_DIGITS
            and length.isdigit()
            and int(length) - self.record.bytes_in <= _DROPPED_BYTES
            and not self._waits_to_send()
        )

    def _waits_to_send(self) -> bool:
        """Returns whether the client waits to be asked for its body."""
        return self.header(b"expect").lower() == "100-continue" and not self.record.bytes_in

    async def _drop_arrived(self) -> None:
        """Drops what has arrived of the body; if that is all, the connection can go on."""
        if self._waits_to_send():
            return
        with suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(0):
                while await self.next_chunk():
                    pass
