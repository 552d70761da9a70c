"""Sends a response in one system call where possible, and closes connections so that the response arrives."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

# How long to go on reading from a client that is still sending; closing at once would reset the connection, and the
# client could lose the response (RFC 9112, section 9.6).
_LINGER_SECONDS: Final = 2.0
_LINGER_SECONDS_AT_SHUTDOWN: Final = 0.5
_LINGER_BYTES: Final = 64 * 2**20
_INTERIM: Final = b"HTTP/1.1 1"  # how interim responses begin


class CoalescingTransport:
    """A transport that sends a response's head together with its body, and closes within a time limit.

    uvicorn writes head and body separately, which costs a system call and wakes the client for half a response. And
    asyncio waits without limit for the client to read what is left when a transport is closed.

    Args:
        transport: asyncio's.
        loop: its event loop.
        seconds: how long a client may take to read what is left after `close`.
        is_sending: whether the client may be sending more of its request.

    Attributes:
        lingering: whether the response has ended, and what still arrives is dropped.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        is_sending: Callable[[], bool],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._seconds = seconds
        self._is_sending = is_sending
        self._linger_seconds = _LINGER_SECONDS
        self._head = b""
        self.lingering = False
        self._dropped = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Keeps a response's head until its body follows or `flush` is called."""
        if self._head:
            self._head += data
            self.flush()
        elif data.startswith(_INTERIM):
            self._transport.write(data)
        else:
            self._head = data

    def is_closing(self) -> bool:
        return self.lingering or self._transport.is_closing()

    def close(self) -> None:
        """Closes the connection, after a moment if the client is sending; a second call closes it at once."""
        self.flush()
        if not self.lingering and self._is_sending():
            self.linger()
            return
        if self._transport.get_write_buffer_size() and not self._transport.is_closing():
            self._loop.call_later(self._seconds, self._transport.abort)
        self._transport.close()

    def linger(self) -> None:
        """Ends the response, and closes the connection once the client has had time to read it."""
        self.flush()
        self.lingering = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(self._linger_seconds, self.close)

    def shorten_linger(self) -> None:
        """Gives a client that is sending less time from now on, because the server is shutting down."""
        self._linger_seconds = _LINGER_SECONDS_AT_SHUTDOWN
        if self.lingering:
            self._loop.call_later(_LINGER_SECONDS_AT_SHUTDOWN, self.close)

    def drop(self, count: int) -> None:
        """Counts bytes that the client has sent while the connection lingers."""
        self._dropped += count
        if self._dropped > _LINGER_BYTES:
            self.close()

    def flush(self) -> None:
        """Sends what has been kept."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)
