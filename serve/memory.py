"""How the C library hands out memory here: at the pace of pictures, and bounded. No error leaves this module.

Left to itself glibc gives the buffers of each decoded picture back to the system and asks for them again for the next:
about 500 page faults a picture, which took a third of decoding and preprocessing where it was measured. And it makes an
arena for each thread, which keep what they once held.
"""

import ctypes
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
