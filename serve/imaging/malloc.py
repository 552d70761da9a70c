"""Tunes glibc's malloc for image decoding, and trims it.

By default glibc returns the buffers of each decoded image to the system and requests them again for the next one, which
costs page faults. It also creates an arena for each thread, up to eight for each CPU, and arenas keep what they once
held. With a single one, threads that load a model or run it wait for each other.
"""

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import Final

_MEBIBYTE: Final = 2**20
# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD: Final = -1
_TOP_PAD: Final = -2
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
# glibc's settings, among them the one by which malloc asks for huge pages. They are read when a process starts.
_TUNABLES: Final = "GLIBC_TUNABLES"
# Python's objects come from malloc too: its own allocator takes memory by 1 MiB, less than a huge page.
_HUGE_PAGES: Final = {_TUNABLES: "glibc.malloc.hugetlb=1", "PYTHONMALLOC": "malloc"}
_HUGE_PAGES_OF_SYSTEM: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")

_SETTINGS: Final = {
    _TOP_PAD: 4 * _MEBIBYTE,
    # Up to this much free memory at the top of the heap is kept for the next image.
    _TRIM_THRESHOLD: 32 * _MEBIBYTE,
    # Buffers from this size on are mapped, and returned as soon as they are freed.
    _MMAP_THRESHOLD: 8 * _MEBIBYTE,
}


def tune_malloc(arenas: int) -> None:
    """Sets malloc's parameters for this process; does nothing without glibc. Call it before threads are started.

    Args:
        arenas: the most that there may be; best one more than there are threads that compute.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in {_ARENA_MAX: arenas, **_SETTINGS}.items():
            mallopt(parameter, value)


def restart_with_huge_pages() -> None:
    """Starts this program anew in this process, so that malloc uses huge pages; call it before anything else.

    Each upload touches memory all over the heap, and with pages of 4 KB most of its addresses have to be looked up in
    page tables, which takes longest on virtual machines. Does nothing where the kernel gives no huge pages, and if
    `GLIBC_TUNABLES` is set, as it is after the restart.
    """
    with contextlib.suppress(OSError):
        if _TUNABLES not in os.environ and "[never]" not in _HUGE_PAGES_OF_SYSTEM.read_text(encoding="ascii"):
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**_HUGE_PAGES, **os.environ})  # noqa: S606


def has_huge_pages() -> bool:
    """Returns whether malloc asks for huge pages."""
    return _HUGE_PAGES[_TUNABLES] in os.environ.get(_TUNABLES, "")


def trim_malloc() -> None:
    """Calls malloc_trim(): returns all free memory to the system, which glibc rarely does by itself."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
