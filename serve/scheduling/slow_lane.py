"""The slow lane: a few places for items that take long, so that however many there are, other items go on."""

import threading
import time
from typing import Final

from serve.errors import QueueFull

# The most items that may wait for a place, whatever the queue's limit, because each keeps a thread.
_MAX_WAITING: Final = 256
# The time that an item may take in the lane: the first estimate, and the weight of the latest item if it takes less.
_ITEM_SECONDS: Final = 4.0
_SMOOTHING: Final = 0.2
# An item that has no place with so many times the estimate left to its deadline is refused.
_RESERVE: Final = 1.5


class SlowLane:
    """Items that take long go on here, at most `places` at a time, and at most `max_waiting` wait. Thread-safe."""

    def __init__(self, places: int, max_waiting: int) -> None:
        self._max_waiting = min(max_waiting, _MAX_WAITING)
        self._places = threading.Semaphore(places)
        self._lock = threading.Lock()
        self._waiting = 0
        self._item_seconds = _ITEM_SECONDS

    def enter(self) -> bool:
        """Takes a place if one is free.

        Returns:
            Whether it did; if not, the item counts as waiting, and `wait` has to follow.

        Raises:
            QueueFull: too many wait.
        """
        if self._places.acquire(blocking=False):
            return True
        with self._lock:
            if self._waiting >= self._max_waiting:
                raise self._full()
            self._waiting += 1
        return False

    def wait(self, deadline: float) -> None:
        """Waits for a place.

        Args:
            deadline: of the item, on the clock of `time.monotonic`.

        Raises:
            QueueFull: there was none in time to end before the deadline.
        """
        seconds = deadline - time.monotonic() - _RESERVE * self._item_seconds
        has_place = self._places.acquire(timeout=max(0.0, seconds))
        with self._lock:
            self._waiting -= 1
            if not has_place:
                raise self._full()

    def leave(self, seconds: float) -> None:
        """Frees the place of an item that took so long."""
        with self._lock:
            self._item_seconds = max(seconds, self._item_seconds + (seconds - self._item_seconds) * _SMOOTHING)
        self._places.release()

    def _full(self) -> QueueFull:
        return QueueFull(
            f"There is no room for an image that takes long to decode: {self._waiting} more are waiting; try again in "
            "a moment.",
            retry_after=self._item_seconds,
        )
