"""The address-space limit, CPU time, priority and CPU of another process, as far as the system has them."""

import ctypes
import os
import resource
import time
from contextlib import suppress
from pathlib import Path

# The clock id of another process's CPU time (clock_getcpuclockid in glibc): its id, inverted, and CPUCLOCK_SCHED.
_ID_SHIFT, _CPU_CLOCK = 3, 2


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


def lower_priority(pid: int, by: int) -> None:
    """Lowers the priority of a process and its threads below this process's; it cannot be raised again."""
    with suppress(OSError):  # it has ended
        for thread in threads_of(pid):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, 0) + by)


def run_here(pid: int) -> None:
    """Keeps a process on the calling thread's CPU.

    That CPU is free while the thread waits for the process. Otherwise the kernel often lets the process wait for a CPU
    on which another thread computes, and this one is idle: with 16 clients, a tenth fewer images a second.
    """
    if hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # it has ended
            os.sched_setaffinity(pid, {ctypes.CDLL(None).sched_getcpu()})


def run_anywhere(pid: int) -> None:
    """Lets a process run on every CPU that the calling thread may run on."""
    if hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # it has ended
            os.sched_setaffinity(pid, os.sched_getaffinity(0))
