"""Reading what clients send by turns, so that bodies which take long to read keep nobody waiting.

Connections are read whenever something has come, all of them in one turn of the event loop, and a body in chunks of one
byte takes forty times the CPU of another. Here such a turn ends in time, and what is left is read in the next ones, in
the order in which it came. No error leaves this module.
"""

import asyncio
import time
from collections import deque
from typing import Final

from serve.server.protocol import HttpProtocol

# What reading may take of a turn of the event loop, besides the read that exceeds it.
_TURN_SECONDS: Final = 0.01
# What is read at once, and so may wait for its turn: 3 ms of the worst. asyncio's own 256 KiB are slower to allocate.
_READ_BYTES: Final = 64 * 1024
# Heads of ordinary requests, probes among them, wait for nobody.
_HEAD_BYTES: Final = 4096


class Turns:
    """Those of one event loop."""

    def __init__(self) -> None:
        self._seconds_left = _TURN_SECONDS
        self._waiting: deque[tuple[TakingTurns, bytes]] = deque()

    def read(self, connection: "TakingTurns", data: bytes) -> None:
        """Have the connection read, at once or when it is its turn."""
        if self._seconds_left <= 0:
            connection.transport.pause_reading()
            self._waiting.append((connection, data))
            return
        began = time.perf_counter()
        connection.read(data)
        self._seconds_left -= time.perf_counter() - began
        if self._seconds_left <= 0:
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        self._seconds_left = _TURN_SECONDS
        while self._waiting and self._seconds_left > 0:
            connection, data = self._waiting.popleft()
            if not connection.transport.is_closing():
                self.read(connection, data)
                if not connection.flow.read_paused:  # by uvicorn, until the body is asked for
                    connection.transport.resume_reading()


class TakingTurns(HttpProtocol):
    """The protocol, reading by turns. turns: of its event loop."""

    turns: Turns

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        in_body = self.cycle is not None and self.cycle.more_body
        if in_body or len(data) > _HEAD_BYTES:
            self.turns.read(self, data)
        else:
            self.read(data)

    def read(self, data: bytes) -> None:
        """Read now."""
        super().data_received(data)
