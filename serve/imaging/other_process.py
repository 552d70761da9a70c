"""The address-space limit, CPU time, priority and CPU of another process or thread, as far as the system has them."""

import ctypes
import os
import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_LIBC: Final = ctypes.CDLL(None)
# The clock id of another process's CPU time (clock_getcpuclockid in glibc): its id, inverted, and CPUCLOCK_SCHED.
_ID_SHIFT, _CPU_CLOCK = 3, 2

# Sleep that is not looked for, because looking takes time.
_SHORT_SECONDS: Final = 0.02


def raise_address_space(pid: int) -> None:
    """Raises the soft limit on a process's address space to the hard one, where the system can."""
    if hasattr(resource, "prlimit"):
        with suppress(OSError):  # it has ended
            hard = resource.prlimit(pid, resource.RLIMIT_AS)[1]
            resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))


class ProcessClock:
    """The time that another process has spent since this clock was made.

    Args:
        pid: the process.
        threads: whether it has threads; then it is not known how long it slept.
    """

    def __init__(self, pid: int, threads: bool) -> None:
        self._pid = pid
        self._threads = threads
        self._began = process_seconds(pid)
        self._last = (time.monotonic(), self._began)
        self._asleep = 0.0

    def read(self) -> tuple[float, float]:
        """Returns its CPU seconds, and about how many seconds it slept, neither running nor waiting for a CPU.

        The latter grows if the process sleeps at the time of the call. 0 where the system does not tell.
        """
        now, cpu = time.monotonic(), process_seconds(self._pid)
        elapsed = now - self._last[0]
        if elapsed > _SHORT_SECONDS and not self._threads and _is_asleep(self._pid):
            self._asleep += elapsed - (cpu - self._last[1])
        self._last = (now, cpu)
        return cpu - self._began, self._asleep


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


def current_cpu() -> int:
    """Returns the number of the CPU that the calling thread runs on; Linux only."""
    return int(_LIBC.sched_getcpu())


def run_here(pid: int) -> None:
    """Keeps a process on the calling thread's CPU.

    That CPU is free while the thread waits for the process. Otherwise the kernel often lets the process wait for a CPU
    on which another thread computes, and this one is idle: with 16 clients, a tenth fewer images a second.
    """
    if hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # it has ended
            os.sched_setaffinity(pid, {current_cpu()})


def run_anywhere(pid: int) -> None:
    """Lets a process run on every CPU that the calling thread may run on."""
    if hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # it has ended
            os.sched_setaffinity(pid, os.sched_getaffinity(0))


def _is_asleep(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(") ")[2][:1] != "R"
