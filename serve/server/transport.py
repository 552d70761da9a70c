"""Sends a response in one system call where possible, and closes connections whose client doesn't read."""

import asyncio
from typing import Any


class CoalescingTransport:
    """A transport that sends a response's head together with its body, and closes within a time limit.

    uvicorn writes head and body separately, which costs a system call and wakes the client for half a response. And
    asyncio waits without limit for the client to read what is left when a transport is closed.

    Args:
        transport: asyncio's.
        loop: its event loop.
        seconds: how long a client may take to read what is left after `close`.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._transport = transport
        self._loop = loop
        self._seconds = seconds
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            self._head += data
            self._send()
        else:
            self._head = data
            self._loop.call_soon(self._send)  # in case no body follows

    def write_eof(self) -> None:
        self._send()
        self._transport.write_eof()

    def close(self) -> None:
        self._send()
        if self._transport.get_write_buffer_size() and not self._transport.is_closing():
            self._loop.call_later(self._seconds, self._transport.abort)
        self._transport.close()

    def _send(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)
