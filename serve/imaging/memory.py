"""Anonymous shared memory, and the address-space limit, CPU time and threads of another process."""

import ctypes
import fcntl
import os
import tempfile
from contextlib import suppress
from typing import Final

_LIBC: Final = ctypes.CDLL(None)
# Zeroing so much costs less than new pages would for the next image.
_KEPT_BYTES: Final = 2**20
# From linux/memfd.h: MFD_NOEXEC_SEAL.
_NOEXEC_SEAL: Final = 0x8
# From linux/falloc.h: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE.
_PUNCH_HOLE: Final = 0x01 | 0x02


def anonymous_memory(size: int) -> int:
    """Returns the descriptor of zeroed memory whose size is fixed, or of an unlinked file where there is no memfd."""
    for more in (_NOEXEC_SEAL, 0):  # kernels before 6.3 do not know the first
        with suppress(AttributeError, OSError):  # another system, or one that forbids it
            memory = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | more)
            os.ftruncate(memory, size)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return memory
    file, name = tempfile.mkstemp()
    os.unlink(name)  # noqa: PTH108
    os.ftruncate(file, size)
    return file


def clear_memory(memory: int, length: int) -> None:
    """Zeroes the beginning of `anonymous_memory`; if it is long, its pages go back to the system."""
    punch = getattr(_LIBC, "fallocate", None) if length > _KEPT_BYTES else None
    if punch is None or punch(memory, _PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(length)):
        os.pwrite(memory, bytes(length), 0)
