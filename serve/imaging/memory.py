"""Anonymous shared memory, and the address-space limit, CPU time and threads of another process."""

import ctypes
import fcntl
import os
import resource
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

# Zeroing so much costs less than new pages would for the next image.
_KEPT_BYTES: Final = 2**20
# From linux/memfd.h: MFD_NOEXEC_SEAL.
_NOEXEC_SEAL: Final = 0x8
# From linux/falloc.h: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE.
_PUNCH_HOLE: Final = 0x01 | 0x02
# The clock id of another process's CPU time (clock_getcpuclockid in glibc): its id, inverted, and CPUCLOCK_SCHED.
_ID_SHIFT, _CPU_CLOCK = 3, 2


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
    punch = getattr(ctypes.CDLL(None), "fallocate", None) if length > _KEPT_BYTES else None
    if punch is None or punch(memory, _PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(length)):
        os.pwrite(memory, bytes(length), 0)


def raise_address_space(pid: int) -> None:
    """Raises the soft limit on a process's address space to the hard one, where the system can."""
    if hasattr(resource, "prlimit"):
        with suppress(OSError):  # it has ended
            hard = resource.prlimit(pid, resource.RLIMIT_AS)[1]
            resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))


def process_seconds(pid: int) -> float:
    """Returns the CPU seconds that a process has used; 0 where the system does not tell, or it has ended."""
    try:
        return time.clock_gettime((~pid << _ID_SHIFT) | _CPU_CLOCK)
    except OSError:
        return 0.0


def threads_of(pid: int) -> list[int]:
    """Returns the ids of a process's threads, which Linux gives a priority each; elsewhere the process's own."""
    folder = Path(f"/proc/{pid}/task")
    return [int(each.name) for each in folder.iterdir()] if folder.exists() else [pid]
