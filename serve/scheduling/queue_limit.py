"""Decides whether items may join the scheduler's queue, and when a refused request should be retried.

Once the queue has overflowed it is kept at a quarter of its length until it drains, so accepted requests wait less at
the same throughput.
"""

from typing import Final

from serve.errors import QueueFull

# Weight of the latest item in the moving average of the time that an item takes.
_SMOOTHING: Final = 0.1
# The queue's length is divided by this once it has overflowed.
_OVERFLOW_DIVISOR: Final = 4


class QueueLimit:
    """The limit on one queue. `require_room` is called on one thread, `record` on others, one at a time.

    Args:
        max_queue: number of items that may wait.
        streams: number of threads that take items from the queue.
        item_seconds: initial estimate of the time that an item takes one thread; later the estimate itself.
    """

    def __init__(self, max_queue: int, streams: int, item_seconds: float) -> None:
        self._max_queue = max_queue
        self._limit = max_queue
        self._streams = streams
        self.item_seconds = item_seconds

    @property
    def overflowed(self) -> bool:
        """Returns whether the queue is kept shorter because it has overflowed."""
        return self._limit < self._max_queue

    def require_room(self, count: int, waiting: int, busy: int) -> None:
        """Checks that `count` items may join `waiting` others while `busy` threads are working.

        Raises:
            QueueFull: they may not; `retry_after` is the estimated time until they may.
        """
        idle = self._streams - busy
        if not waiting:
            self._limit = self._max_queue
        limit = self._limit
        too_many = waiting + count - idle - self._max_queue
        if waiting + 1 - idle > limit:  # not even one item fits, so the queue has overflowed
            self._limit = max(1, self._max_queue // _OVERFLOW_DIVISOR)
            too_many = max(too_many, waiting + 1 - self._limit)
        elif too_many <= 0:
            return
        seconds = (too_many + idle) * self.item_seconds / self._streams
        raise QueueFull(
            f"There is no room for {count} image{'s' * (count > 1)}: {waiting} are waiting and the limit is "
            f"{limit}; try again in a moment.",
            retry_after=seconds,
        )

    def record(self, seconds: float) -> None:
        """Updates the estimate with the time that an item took one thread."""
        self.item_seconds += (seconds - self.item_seconds) * _SMOOTHING
