"""Limits how many pixels are decoded at once: a weighted semaphore for threads."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# Units that are reserved for small requests.
_RESERVE: Final = 4_000_000


class PixelBudget:
    """A weighted semaphore that serves small and large requests independently of each other.

    A request is small if it fits into the reserve. Small requests use the reserve and the shared units, but only the
    reserve while a large request waits; large requests use the shared units. Each kind is served in order of arrival.

    Args:
        units: shared units.
        reserve: further units, for small requests alone.
    """

    def __init__(self, units: int, reserve: int = _RESERVE) -> None:
        self._units = units
        self._reserve = reserve
        self._held = {True: 0, False: 0}  # by small requests, by large ones
        self._queues: dict[bool, deque[object]] = {True: deque(), False: deque()}
        self._changed = threading.Condition()

    @contextmanager
    def acquire(self, units: int) -> Iterator[None]:
        """Waits until `units`, at most all shared ones, are free, and holds them for the `with` block."""
        units = min(units, self._units)
        small = units <= self._reserve
        with self._changed:
            if self._queues[small] or not self._fits(units, small):
                self._wait(units, small)
            self._held[small] += units
        try:
            yield
        finally:
            with self._changed:
                self._held[small] -= units
                self._changed.notify_all()

    def _wait(self, units: int, small: bool) -> None:
        queue, ticket = self._queues[small], object()
        queue.append(ticket)
        try:
            self._changed.wait_for(lambda: queue[0] is ticket and self._fits(units, small))
        finally:
            queue.remove(ticket)
            self._changed.notify_all()

    def _fits(self, units: int, small: bool) -> bool:
        small_held = self._held[True] + units * small
        if small and small_held <= self._reserve:
            return True
        if small and self._queues[False]:
            return False
        large_held = self._held[False] + units * (not small)
        return large_held + max(0, small_held - self._reserve) <= self._units
