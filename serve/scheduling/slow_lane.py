"""The slow lane: a few places for items that take long, so that however many there are, other items go on."""

import threading
import time
from typing import Final

from serve.errors import QueueFull
from serve.scheduling.task import Task

# The most items that may wait for a place, whatever the queue's limit, because each keeps a thread.
_MAX_WAITING: Final = 64
# The time that an item may take in the lane: the first estimate, and the weight of the latest item if it takes less.
_ITEM_SECONDS: Final = 4.0
_SMOOTHING: Final = 0.2
# An item that has no place with so many times the estimate left to its deadline is refused.
_RESERVE: Final = 1.5


class SlowLane:
    """Items that take long go on here, at most `places` at a time; at most `max_waiting` wait, in turn. Thread-safe."""

    def __init__(self, places: int, max_waiting: int) -> None:
        self._max_waiting = min(max_waiting, _MAX_WAITING)
        self._changed = threading.Condition()
        self._free = places
        self._waiting: list[Task] = []  # of each item that waits, in the order that they came
        self._item_seconds = _ITEM_SECONDS

    def enter(self, task: Task) -> bool:
        """Takes a place for an item of a task if one is free and no other item waits for it.

        Returns:
            Whether it did; if not, the item counts as waiting, and `wait` has to follow.

        Raises:
            QueueFull: too many wait.
        """
        with self._changed:
            if self._free > len(self._waiting):
                self._free -= 1
                return True
            if len(self._waiting) >= self._max_waiting:
                raise self._full()
            self._waiting.append(task)
        return False

    def wait(self, task: Task) -> None:
        """Waits for a place for an item of a task.

        Raises:
            QueueFull: there was none in time to end before the deadline, or the task was abandoned.
        """
        with self._changed:
            seconds = task.deadline - time.monotonic() - _RESERVE * self._item_seconds
            self._changed.wait_for(lambda: task in self._next() or task.abandoned, max(0.0, seconds))
            has_place = task in self._next() and not task.abandoned
            self._waiting.remove(task)
            self._changed.notify_all()  # the next one's turn may have come
            if not has_place:
                raise self._full()
            self._free -= 1

    def abandon(self, task: Task) -> None:
        """Ends the waiting of a task's items, which hold their images, because no one waits for them any more."""
        with self._changed:
            task.abandoned = True
            self._changed.notify_all()

    def leave(self, seconds: float) -> None:
        """Frees the place of an item that took so long."""
        with self._changed:
            self._item_seconds = max(seconds, self._item_seconds + (seconds - self._item_seconds) * _SMOOTHING)
            self._free += 1
            self._changed.notify_all()

    def _next(self) -> list[Task]:
        """Returns the tasks whose items may have the free places."""
        return self._waiting[: self._free]

    def _full(self) -> QueueFull:
        return QueueFull(
            f"There is no room for an image that takes long to decode: {len(self._waiting)} more are waiting; try "
            "again in a moment.",
            retry_after=self._item_seconds,
        )
