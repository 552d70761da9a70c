"""Memory at the pace of pictures, and bounded: malloc's settings, and a bound on what is decoded at once.

No error leaves this module.

Left to itself glibc gives the buffers of each decoded picture back to the system and asks for them again for the next,
which costs page faults. And it makes an arena for each thread, which keep what they once held.
"""

import ctypes
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_MEBIBYTE: Final = 2**20
# glibc's own numbers for mallopt, from its malloc.h.
_TRIM_THRESHOLD: Final = -1
_TOP_PAD: Final = -2
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8

_SETTINGS: Final = {
    _ARENA_MAX: 1,
    _TOP_PAD: 4 * _MEBIBYTE,
    # What is freed at the top is kept for the next picture up to this, and larger buffers always go back at once.
    _TRIM_THRESHOLD: 32 * _MEBIBYTE,
    _MMAP_THRESHOLD: 8 * _MEBIBYTE,
}
# Units of `PixelBudget` that large requests leave free.
_RESERVE: Final = 4_000_000


def settle_allocator() -> None:
    """Tune malloc for this process; call it before threads are made. Where there is no glibc, nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _SETTINGS.items():
            mallopt(parameter, value)


def trim() -> None:
    """Give back what is free, wherever it lies: after loading, and now and then, for what bursts leave."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


class PixelBudget:
    """So many units for all threads together, and a reserve besides that is kept for small requests.

    Small ones, which would fit into the reserve, use both, but only the reserve while a large one waits. So neither
    holds up the other. Within each kind who asks first is served first.
    """

    def __init__(self, units: int, reserve: int = _RESERVE) -> None:
        self._units = units
        self._reserve = reserve
        self._held = {True: 0, False: 0}  # by small ones, by large ones
        self._queues: dict[bool, deque[object]] = {True: deque(), False: deque()}
        self._changed = threading.Condition()

    @contextmanager
    def acquire(self, units: int) -> Iterator[None]:
        """Hold so many units for a `with` block, all of them at most; waits until they are free."""
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
        smalls = self._held[True] + units * small
        if small and smalls <= self._reserve:
            return True
        if small and self._queues[False]:
            return False
        larges = self._held[False] + units * (not small)
        return larges + max(0, smalls - self._reserve) <= self._units
