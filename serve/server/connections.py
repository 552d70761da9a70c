"""Who may stay connected: a bound on connections, and who has to go where it is reached.

A connection waits (for its client to send something) or works (on a request whose body is complete). Where there are as
many as may be, the one that has waited longest makes room for a new one, so that idle and dripping connections keep
nobody out; those that work are never closed. Knows no HTTP. No error leaves this module.
"""

from collections.abc import Hashable
from typing import Final, Generic, Protocol, TypeVar

# Connections accepted in one turn of the event loop.
ACCEPTED_AT_ONCE: Final = 128
# Those open beyond the bound, until the first that makes room is closed, a few turns later.
ACCEPTED_TOO_MANY: Final = 4 * ACCEPTED_AT_ONCE
# Bytes of answers that clients have not read, of all connections together, besides what the system keeps of each.
MAX_UNREAD_BYTES: Final = 64 * 2**20


class Evictable(Hashable, Protocol):
    """A connection as this module sees it."""

    def evict(self) -> None:
        """Close at once."""


C = TypeVar("C", bound=Evictable)


class ConnectionLimiter(Generic[C]):
    """All connections of one event loop. limit: how many there may be."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[C, None] = {}  # the one that has waited longest first
        self._working: set[C] = set()
        self._unread: dict[C, int] = {}  # the one that has not read for longest first

    def __len__(self) -> int:
        return len(self._waiting) + len(self._working)

    def opened(self, connection: C) -> bool:
        """Take in a new connection, which waits; False where all others work and it may only be told to go."""
        while len(self) >= self._limit and self._waiting:
            longest = next(iter(self._waiting))
            self.closed(longest)
            longest.evict()
        room = len(self) < self._limit
        self._waiting[connection] = None
        return room

    def mark_busy(self, connection: C) -> None:
        """Its request is complete: what follows is the server's own time."""
        if connection in self._waiting:
            del self._waiting[connection]
            self._working.add(connection)

    def mark_idle(self, connection: C) -> None:
        """It is answered; from now on it waits for its client again."""
        if connection in self._working:
            self._working.discard(connection)
            self._waiting[connection] = None

    def leaves_unread(self, connection: C, count: int) -> None:
        """Note how many bytes wait for its client to read; the one that has not read for longest makes room."""
        self._unread[connection] = count
        while sum(self._unread.values()) > MAX_UNREAD_BYTES:
            longest = next(iter(self._unread))
            self.closed(longest)
            longest.evict()

    def reads(self, connection: C) -> None:
        """Its client has read what waited."""
        self._unread.pop(connection, None)

    def closed(self, connection: C) -> None:
        """It is no more."""
        self._unread.pop(connection, None)
        self._waiting.pop(connection, None)
        self._working.discard(connection)
