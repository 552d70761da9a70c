"""The address-space limit, CPU time, priority and CPU of another process, as far as the system has them."""

import ctypes
import os
import resource
import signal
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


class ProcessClock:
    """The time that another process has spent since this clock was made.

    Args:
        pid: the process.
        threads: whether it has threads; then it is not known how long it slept.
    """

    def __init__(self, pid: int, threads: bool) -> None:
        self._pid = pid
        self._started = time.monotonic()
        self._cpu = _cpu_seconds(pid)
        self._waited = None if threads else _waited_seconds(pid)

    def read(self) -> tuple[float, float]:
        """Returns its CPU seconds, and the seconds for which it slept: neither ran nor waited for a CPU.

        Both are 0 where the system does not tell, or the process has ended.
        """
        elapsed = time.monotonic() - self._started
        cpu = _cpu_seconds(self._pid) - self._cpu
        waited = _waited_seconds(self._pid) if self._waited is not None else None
        # The system counts waiting when it ends, so that of a process that waits now is not known.
        if waited is None or self._waited is None or _is_runnable(self._pid):
            return cpu, 0.0
        return cpu, elapsed - cpu - (waited - self._waited)


def stop(pid: int) -> None:
    """Stops a process until `resume`, so that it can use no CPU time."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)


def resume(pid: int) -> None:
    """Lets a process go on after `stop`."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


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


def _cpu_seconds(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << _ID_SHIFT) | _CPU_CLOCK)
    except OSError:
        return 0.0


def _waited_seconds(pid: int) -> float | None:
    """Returns the seconds for which a process was ready to run and had no CPU; None where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, LookupError, ValueError):
        return None


def _is_runnable(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(") ")[2][:1] == "R"
    except OSError:
        return False
