"""Moves the machine code of a library to huge pages.

An inference of DenseNet-121 runs 400 operators, whose code is spread over 27 MB. The kernel maps the code of files with
pages of 4 KB, too many for the processor's table of addresses. So the code is copied to anonymous memory with pages of
2 MB, which then takes the place of the file's, at the same addresses. Node.js does so with its own code if it is
started with `--use-largepages`.
"""

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_HUGE_PAGE_BYTES: Final = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MAPPINGS: Final = Path("/proc/self/maps")
_MREMAP_MAYMOVE_FIXED: Final = 3
_FAILED: Final = ctypes.c_void_p(-1).value


def move_code_to_huge_pages(library: Path) -> int:
    """Replaces the code of a loaded library by a copy of it in huge pages, as far as whole ones fit in it.

    The copy has the same bytes at the same addresses, so code may run meanwhile. It is never writable and executable
    at the same time. Where something of it isn't permitted, the code stays where it is.

    Args:
        library: the file, as the process has mapped it.

    Returns:
        The number of bytes that were moved; 0 if the system has no huge pages.
    """
    try:
        library = library.resolve()
        size = int(_HUGE_PAGE_BYTES.read_text(encoding="ascii"))
        return sum(_move(start, end - start, size) for start, end in _code(library, size))
    except (OSError, AttributeError):  # not Linux, or a C library without mremap
        return 0


def _code(library: Path, size: int) -> Iterator[tuple[int, int]]:
    """Yields the first and the last address of whole huge pages within the library's code."""
    for line in _MAPPINGS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1] == "r-xp" and fields[5] == str(library):
            first, last = (int(address, 16) for address in fields[0].split("-"))
            start, end = -(-first // size) * size, last // size * size
            if start < end:
                yield start, end


def _move(start: int, length: int, size: int) -> int:
    libc = ctypes.CDLL(None)
    address, number = ctypes.c_void_p, ctypes.c_size_t
    libc.mmap.argtypes = [address, number, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mremap.argtypes = [address, number, number, ctypes.c_int, address]
    libc.mmap.restype = libc.mremap.restype = address
    libc.munmap.argtypes, libc.madvise.argtypes = [address, number], [address, number, ctypes.c_int]
    libc.mprotect.argtypes = [address, number, ctypes.c_int]

    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    mapped = libc.mmap(None, length + size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    if mapped == _FAILED:
        return 0
    copy = -(-mapped // size) * size  # at the start of a huge page
    moved = 0
    if libc.madvise(copy, length, mmap.MADV_HUGEPAGE) == 0:
        ctypes.memmove(copy, start, length)
        if (
            libc.mprotect(copy, length, mmap.PROT_READ | mmap.PROT_EXEC) == 0
            and libc.mremap(copy, length, length, _MREMAP_MAYMOVE_FIXED, start) == start
        ):
            moved = length
    # Not what mremap has moved away from: another thread may have mapped something there by now.
    for first, last in ((mapped, copy), (copy + moved, mapped + length + size)):
        if first < last:
            libc.munmap(first, last - first)
    return moved
