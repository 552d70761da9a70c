"""Limits the number of connections, and the memory of responses that clients don't read.

A connection is busy from the time its request is complete until the response has been sent, and otherwise idle. When
the limit is reached, a new connection replaces the one idle longest, so that idle and slow connections don't lock out
new clients. Busy connections are never closed for this reason.
"""

import asyncio
import time
from collections.abc import Hashable, Iterable
from typing import Final, Generic, Protocol, TypeVar

# Connections accepted in one iteration of the event loop.
ACCEPTS_PER_ITERATION: Final = 128
# Connections that may be open beyond the limit until evicted ones are closed, a few iterations later.
MAX_EXCESS_CONNECTIONS: Final = 4 * ACCEPTS_PER_ITERATION
# Bytes of unread responses of all connections together, besides what the kernel buffers for each.
MAX_UNREAD_BYTES: Final = 64 * 2**20


class Evictable(Hashable, Protocol):
    """A connection that can be closed in favour of another."""

    def evict(self) -> None:
        """Closes the connection at once."""


class Idle(Hashable, Protocol):
    """A connection that can be closed because no request follows."""

    def timeout_keep_alive_handler(self) -> None:
        """Closes the connection; uvicorn's name."""


C = TypeVar("C", bound=Evictable)
W = TypeVar("W", bound=Idle)


class KeptAlive(Generic[W]):
    """The connections of one event loop that wait for their next request, each for the same time; one timer for all."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[W, float] = {}  # longest first
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: W) -> None:
        """Lets a connection wait from now on."""
        self._since[connection] = time.monotonic()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._close_late)

    def discard(self, connection: W) -> None:
        """Removes a connection that has received something, or is closed."""
        self._since.pop(connection, None)

    def _close_late(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._since:
            connection, since = next(iter(self._since.items()))
            if (left := since + self._seconds - now) > 0:
                self._timer = asyncio.get_running_loop().call_later(left, self._close_late)
                break
            del self._since[connection]
            connection.timeout_keep_alive_handler()


class ConnectionLimiter(Generic[C]):
    """The connections of one event loop, at most `limit` of them open."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._idle: dict[C, None] = {}  # idle longest first
        self._busy: set[C] = set()
        self._unread: dict[C, int] = {}  # unread longest first

    def __len__(self) -> int:
        return len(self._idle) + len(self._busy)

    def add(self, connection: C) -> bool:
        """Adds a new connection, idle at first, and evicts idle ones over the limit.

        Returns:
            False if all others are busy and the limit is reached: the caller then refuses the connection.
        """
        while len(self) >= self._limit and self._idle:
            self._evict_first(self._idle)
        has_room = len(self) < self._limit
        self._idle[connection] = None
        return has_room

    def mark_busy(self, connection: C) -> None:
        """Marks a connection whose request is complete."""
        if connection in self._idle:
            del self._idle[connection]
            self._busy.add(connection)

    def mark_idle(self, connection: C) -> None:
        """Marks a connection whose request is answered."""
        if connection in self._busy:
            self._busy.discard(connection)
            self._idle[connection] = None

    def set_unread(self, connection: C, count: int) -> None:
        """Records how many bytes the client has not read; above the limit, evicts the connection unread longest."""
        self._unread[connection] = count
        while sum(self._unread.values()) > MAX_UNREAD_BYTES:
            self._evict_first(self._unread)

    def clear_unread(self, connection: C) -> None:
        """Records that the client has read everything."""
        self._unread.pop(connection, None)

    def remove(self, connection: C) -> None:
        """Removes a closed connection."""
        self._unread.pop(connection, None)
        self._idle.pop(connection, None)
        self._busy.discard(connection)

    def _evict_first(self, connections: Iterable[C]) -> None:
        first = next(iter(connections))
        self.remove(first)
        first.evict()
