"""Tunes glibc's malloc for image decoding, and trims it.

By default glibc returns the buffers of each decoded image to the system and requests them again for the next one, which
costs page faults. It also creates an arena for each thread, and arenas keep what they once held.
"""

import ctypes
from typing import Final

_MEBIBYTE: Final = 2**20
# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD: Final = -1
_TOP_PAD: Final = -2
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8

_SETTINGS: Final = {
    _ARENA_MAX: 1,
    _TOP_PAD: 4 * _MEBIBYTE,
    # Up to this much free memory at the top of the heap is kept for the next image.
    _TRIM_THRESHOLD: 32 * _MEBIBYTE,
    # Buffers from this size on are mapped, and returned as soon as they are freed.
    _MMAP_THRESHOLD: 8 * _MEBIBYTE,
}


def tune_malloc() -> None:
    """Sets malloc's parameters for this process; does nothing without glibc. Call it before threads are started."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _SETTINGS.items():
            mallopt(parameter, value)


def trim_malloc() -> None:
    """Calls malloc_trim(): returns all free memory to the system, which glibc rarely does by itself."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
