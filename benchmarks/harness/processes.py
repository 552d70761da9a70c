"""What Linux says about processes: a session's members with their memory and CPU time, and the machine's CPU time.

A server may be one process or a tree whose children outlive it, so whoever is in the session it was started with, or
descends from someone who was, belongs to it. Nothing here fails on a process that has just ended.
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
    started: int  # in ticks since boot: with the process id, the name of one process for ever
    cpu_seconds: float
    zombie: bool


@dataclass
class Tree:
    """All processes of one server. leader: the process that was started in a session of its own."""

    leader: int
    _known: dict[int, int] = field(default_factory=dict)  # process id → when it started

    def members(self) -> list[int]:
        """Process ids of those alive now, the leader first."""
        table = _read_table()
        known = {pid for pid, started in self._known.items() if pid in table and table[pid].started == started}
        found = known | {pid for pid, stat in table.items() if self.leader in (pid, stat.session)}
        while more := {pid for pid, stat in table.items() if stat.parent in found} - found:
            found |= more
        self._known = {pid: table[pid].started for pid in found}
        return sorted((pid for pid in found if not table[pid].zombie), key=lambda pid: (pid != self.leader, pid))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to each member by its id; children first, so that no parent sees them misbehave."""
        for pid in reversed(self.members()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def memory_mb(self) -> dict[str, float]:
        """Megabytes (10⁶): `rss` and `pss` summed over the members, and how many those are.

        PSS counts a page that several processes share once in all, so it is what a tree really takes.
        """
        members = self.members()
        sums = {"rss": 0.0, "pss": 0.0}
        for pid in members:
            for name, kilobytes in _read_rollup(pid).items():
                sums[name] += kilobytes * 1024 / 1e6
        return {**{name: round(value, 1) for name, value in sums.items()}, "processes": len(members)}

    def cpu_seconds(self) -> float:
        """CPU time of those alive now."""
        table = _read_table()
        return sum(table[pid].cpu_seconds for pid in self.members() if pid in table)


class CpuWatch:
    """Who used the machine's CPUs from now on, beside a tree, this process, and its children that have ended."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._began = time.perf_counter()
        self._busy, self._known = _busy_seconds(), self._known_seconds()

    def others_share(self) -> float:
        """CPU time of everybody else, as a share of all that the machine has: above a few percent, figures suffer."""
        others = _busy_seconds() - self._busy - (self._known_seconds() - self._known)
        return max(0.0, others) / (time.perf_counter() - self._began) / (os.cpu_count() or 1)

    def _known_seconds(self) -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return self._tree.cpu_seconds() + time.process_time() + children.ru_utime + children.ru_stime


def _busy_seconds() -> float:
    """CPU seconds that all CPUs together have spent on anything but idling, stolen time included, since boot."""
    first = (_PROC / "stat").read_text(encoding="ascii").split("\n", 1)[0]
    user, nice, system, _idle, _wait, irq, softirq, steal = (int(value) for value in first.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _read_table() -> dict[int, _Stat]:
    table = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # After the command's name in brackets, which may hold anything: state is the first field.
                fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                cpu = (int(fields[11]) + int(fields[12])) / _TICKS
                table[int(entry.name)] = _Stat(int(fields[1]), int(fields[3]), int(fields[19]), cpu, fields[0] == "Z")
    return table


def _read_rollup(pid: int) -> dict[str, int]:
    """Kilobytes of RSS and PSS; nothing where the process has ended."""
    sizes = {}
    with contextlib.suppress(OSError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii", errors="replace").split("\n"):
            name, _, value = line.partition(":")
            if name in ("Rss", "Pss"):
                sizes[name.lower()] = int(value.split()[0])
    return sizes
