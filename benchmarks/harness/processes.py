"""Reads memory and CPU time of process trees and of the machine from /proc.

A server may be one process or a tree whose children outlive it. A process belongs to it if it is in the session that
the server was started in, or descends from such a process. Processes that have just ended are skipped.
"""

import contextlib
import os
import resource
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class _Stat:
    parent: int
    session: int
    started: int  # in ticks since boot; with the process id, it identifies a process
    cpu_seconds: float
    zombie: bool


@dataclass
class ProcessTree:
    """All processes of one server.

    Attributes:
        leader: The id of the process that was started, in a session of its own.
    """

    leader: int
    _known: dict[int, int] = field(default_factory=dict)  # process id → when it started

    def members(self) -> list[int]:
        """The ids of the living processes, the leader first."""
        table = _read_table()
        known = {pid for pid, started in self._known.items() if pid in table and table[pid].started == started}
        found = known | {pid for pid, stat in table.items() if self.leader in (pid, stat.session)}
        while more := {pid for pid, stat in table.items() if stat.parent in found} - found:
            found |= more
        self._known = {pid: table[pid].started for pid in found}
        return sorted((pid for pid in found if not table[pid].zombie), key=lambda pid: (pid != self.leader, pid))

    def kill(self) -> None:
        """Kill every process; to be repeated until there are no members, as a parent may start new ones meanwhile."""
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def memory_mb(self) -> dict[str, float]:
        """`rss` and `pss` in MB (10⁶ bytes), summed over the processes, and the number of `processes`.

        PSS counts a page that several processes share only once, so it is what a tree really takes.
        """
        members = self.members()
        sums = {"rss": 0.0, "pss": 0.0}
        for pid in members:
            for name, kilobytes in _read_rollup(pid).items():
                sums[name] += kilobytes * 1024 / 1e6
        return {**{name: round(value, 1) for name, value in sums.items()}, "processes": len(members)}

    def cpu_seconds(self) -> float:
        """CPU time of the living processes, and of their children that have ended, such as decoders."""
        table = _read_table()
        return sum(table[pid].cpu_seconds for pid in self.members() if pid in table)


class CpuWatch:
    """Measures the CPU use of other processes from now on: all but a tree, this process and its ended children."""

    def __init__(self, tree: ProcessTree) -> None:
        self._tree = tree
        self._began = time.perf_counter()
        self._busy, self._known = _busy_seconds(), self._known_seconds()

    def others_share(self) -> float:
        """The other processes' share of all CPUs, 0 to 1; above a few percent, figures suffer."""
        others = _busy_seconds() - self._busy - (self._known_seconds() - self._known)
        return max(0.0, others) / (time.perf_counter() - self._began) / (os.cpu_count() or 1)

    def _known_seconds(self) -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return self._tree.cpu_seconds() + time.process_time() + children.ru_utime + children.ru_stime


def _busy_seconds() -> float:
    """CPU seconds since boot that the CPUs were not idle, stolen time included."""
    first = (_PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0]
    user, nice, system, _idle, _wait, irq, softirq, steal = (int(value) for value in first.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _read_table() -> dict[int, _Stat]:
    table = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The command's name in brackets may contain anything; the first field after it is the state.
                fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                cpu = sum(map(int, fields[11:15])) / _TICKS  # utime, stime, cutime and cstime
                table[int(entry.name)] = _Stat(int(fields[1]), int(fields[3]), int(fields[19]), cpu, fields[0] == "Z")
    return table


def _read_rollup(pid: int) -> dict[str, int]:
    """RSS and PSS in kB; empty if the process has ended."""
    sizes = {}
    with contextlib.suppress(OSError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii", errors="replace").split("\n"):
            name, _, value = line.partition(":")
            if name in ("Rss", "Pss"):
                sizes[name.lower()] = int(value.split()[0])
    return sizes
