"""Limits how long an iteration of the event loop spends on reading request bodies, so that they don't delay probes.

asyncio reads all connections that have data in one iteration, and a body in chunks of one byte takes forty times the
CPU time of an ordinary one. Here an iteration stops reading after its time budget; what is left is read in later
iterations, in order of arrival.
"""

import asyncio
import time
from collections import deque
from typing import Any, Final

from serve.server.protocol import HttpProtocol

# Time for reading in one iteration of the event loop; the read that exceeds it is completed.
_SECONDS: Final = 0.01
# Size of one read: 3 ms in the worst case, a body in chunks of one byte.
_READ_BYTES: Final = 64 * 1024
# Size of one read of nothing but a body that is not chunked; fewer reads take 0.6 ms less for 3.5 MB. What is read is
# memory that no limit counts until the application takes it, so reads are this large only with few connections.
_BODY_READ_BYTES: Final = 512 * 1024
_FEW_CONNECTIONS: Final = 64
# Heads of ordinary requests, such as probes, are smaller than this and are read at once.
_HEAD_BYTES: Final = 4096


class ReadBudget:
    """Limits the time for reading in each iteration of one event loop."""

    def __init__(self) -> None:
        self._seconds_left = _SECONDS
        self._waiting: deque[tuple[BudgetedProtocol, bytes]] = deque()

    def read(self, connection: "BudgetedProtocol", data: bytes) -> None:
        """Passes `data` to the connection, now or once there is time."""
        if self._seconds_left <= 0:
            connection.transport.pause_reading()
            self._waiting.append((connection, data))
            return
        began = time.perf_counter()
        connection.read(data)
        self._seconds_left -= time.perf_counter() - began
        if self._seconds_left <= 0:
            asyncio.get_running_loop().call_soon(self._begin_iteration)

    def _begin_iteration(self) -> None:
        self._seconds_left = _SECONDS
        while self._waiting and self._seconds_left > 0:
            connection, data = self._waiting.popleft()
            if not connection.transport.is_closing():
                self.read(connection, data)
            # uvicorn pauses reading until the application asks for the body.
            if connection.transport.is_closing() or not connection.flow.read_paused:
                connection.transport.resume_reading()


class BudgetedProtocol(HttpProtocol):
    """The HTTP protocol with a time budget for reading bodies.

    Attributes:
        read_budget: shared by all connections.
    """

    read_budget: ReadBudget
    _reader: Any  # asyncio's transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._reader = transport
        self._reader.max_size = _READ_BYTES
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        in_body = self.cycle is not None and self.cycle.more_body
        if in_body or len(data) > _HEAD_BYTES:
            self.read_budget.read(self, data)
        else:
            self.read(data)

    def read(self, data: bytes) -> None:
        """Reads at once, and sets the size of the next read, no larger than what is left of the body."""
        super().data_received(data)
        size = _READ_BYTES
        if self.body_left > size and len(self.all_connections) <= _FEW_CONNECTIONS:
            size = min(self.body_left, _BODY_READ_BYTES)
        self._reader.max_size = size
