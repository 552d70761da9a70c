"""Finds how many CPUs this process may use: the smallest of CPU affinity, cgroup quota and the setting `threads`.

The host's CPU count is not used, because a container sees all of it whatever its share. A limit that cannot be read
counts as none.
"""

import math
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")


@dataclass(frozen=True)
class CpuBudget:
    """The number of CPUs to compute on, at least 1, and what determined it."""

    count: int
    reason: str


def cpu_budget(setting: int, root: Path = _ROOT) -> CpuBudget:
    """Returns the budget of this process; a fractional quota is rounded down, but not below 1.

    Args:
        setting: upper limit, 0 for none.
        root: the folder that contains /proc and the cgroup mounts.
    """
    limits = [CpuBudget(_affinity(), "all that this process may run on")]
    quota = cgroup_quota(root)
    if quota is not None:
        limits.append(CpuBudget(max(1, math.floor(quota)), f"the cgroup's quota of {quota:g} CPUs"))
    if setting:
        limits.append(CpuBudget(setting, "the threads setting"))
    return min(limits, key=lambda limit: limit.count)


@dataclass(frozen=True)
class ThreadPlan:
    """How the budget is used: `streams` images at once or `intra_op_threads` on one; neither exceeds it."""

    budget: CpuBudget
    streams: int
    intra_op_threads: int


def cgroup_quota(root: Path = _ROOT) -> float | None:
    """Returns the smallest quota of this process's cgroup and its ancestors, in CPUs; None if there is none.

    Reads version 1 (`cpu.cfs_quota_us`) and version 2 (`cpu.max`), which a host may both mount.
    """
    quotas = [
        quota
        for top, group in _cpu_groups(root)
        for folder in (group, *group.parents)
        if folder.is_relative_to(top) and (quota := _quota(folder)) is not None
    ]
    return min(quotas, default=None)


def cpu_features(root: Path = _ROOT) -> frozenset[str]:
    """Returns the names of the CPU's instruction sets, as Linux lists them; none where it does not."""
    return frozenset((_cpu_entry("flags", root) or _cpu_entry("Features", root)).split())  # the latter on arm64


def cpu_vendor(root: Path = _ROOT) -> str:
    """Returns who made the CPU, such as GenuineIntel; empty where Linux does not tell."""
    return _cpu_entry("vendor_id", root)


def cpu_model(root: Path = _ROOT) -> str:
    """Returns the CPU's name, or its architecture where Linux does not tell the name, as on arm64."""
    return _cpu_entry("model name", root) or platform.machine()


def _cpu_entry(name: str, root: Path) -> str:
    lines = (line.partition(":") for line in _lines(root / "proc/cpuinfo"))
    return next((value.strip() for found, _, value in lines if found.strip() == name), "")


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # not Linux: no cgroups and no affinity to respect


def _cpu_groups(root: Path) -> list[tuple[Path, Path]]:
    """Finds each mounted hierarchy that can limit CPUs: its mount point and this process's group below it."""
    groups = {}  # controllers → path, as in "4:cpu,cpuacct:/a" (version 1) or "0::/a" (version 2, no controllers)
    for line in _lines(root / "proc/self/cgroup"):
        match line.split(":", 2):
            case [_, controllers, path]:
                groups.update(dict.fromkeys(controllers.split(","), path))
    found = []
    for line in _lines(root / "proc/self/mountinfo"):
        match [_unescaped(field) for part in line.partition(" - ")[::2] for field in part.split(" ")]:
            case [_, _, _, shown, point, *_, kind, _, options]:
                pass
            case _:
                continue
        controller = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
        if controller is None or controller not in groups or (controller and controller not in options.split(",")):
            continue
        top = root / point.lstrip("/")
        # The mount may show a group below the root ("shown"), as in a container without a cgroup namespace.
        group = Path(groups[controller])
        below = group.relative_to(shown) if group.is_relative_to(shown) else Path()
        found.append((top, top / below))
    return found


def _unescaped(field: str) -> str:
    """Decodes a field of mountinfo, in which a blank is `\\040`; tab, line feed and backslash are escaped alike."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _quota(folder: Path) -> float | None:
    """Reads one group's own quota in CPUs; `max` and negative values mean none."""
    texts = _lines(folder / "cpu.max") or _lines(folder / "cpu.cfs_quota_us") + _lines(folder / "cpu.cfs_period_us")
    try:
        quota, period = map(int, " ".join(texts).split())
        return quota / period if quota > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return []
