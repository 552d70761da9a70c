"""Compares two results.

A figure has changed if the ranges of the rounds do not overlap and the medians differ by more than 3 %; anything else
may be noise. Of different CPUs only ratios are compared, not times.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.harness.figures import Result
from benchmarks.harness.machine import describe_cpu
from benchmarks.reporting.report import disturbances, format_figure, format_table

_MIN_CHANGE: Final = 0.03
_FEW_ROUNDS: Final = 3
_COMPARED: Final = ("p50_ms", "p99_ms", "images_per_s", "beyond_ms")


@dataclass(frozen=True)
class _Figure:
    """One figure of one result. less: whether less is better."""

    spread: dict[str, Any]
    less: bool = True


def compare(old: Result, new: Result) -> str:
    """Describe what changed, in lines for the terminal."""
    same_cpu = all(old["machine"][name] == new["machine"][name] for name in ("cpu", "usable_cpus"))
    lines = [f"Compared with the run of {old['date']}" + (f", {old['revision']}" if old.get("revision") else "")]
    if not same_cpu:
        then, now = (describe_cpu(result["machine"]) for result in (old, new))
        lines.append(f"Another machine: then {then}; now {now}. Only ratios are compared.")
    before, after = (dict([*_ratios(result), *(_figures(result) if same_cpu else ())]) for result in (old, new))
    lines += _warnings(old, new, [*before.values(), *after.values()])
    both = [name for name in after if name in before]
    changed = [(name, direction) for name in both if (direction := _direction(before[name], after[name]))]
    if changed:
        rows = [("changed", "then", "now", "now/then", "")]
        for name, direction in changed:
            then, now = before[name].spread, after[name].spread
            change = f"{now['median'] / then['median']:.3f}" if then["median"] else "–"
            rows.append((name, format_figure(then, 3), format_figure(now, 3), change, direction))
        lines.append(format_table(rows))
    lines.append(f"{len(both) - len(changed)} of {len(both)} figures are within the range of the rounds.")
    for what, some, others in (("only then", before, after), ("only now", after, before)):
        if only := [name for name in some if name not in others]:
            lines.append(f"Measured {what}: {len(only)}, such as {only[0]}")
    return "\n".join(lines) + "\n"


def _warnings(old: Result, new: Result, figures: list[_Figure]) -> list[str]:
    """Reasons why a change may still be noise."""
    warnings = [f"{when}: {text}" for when, result in (("Then", old), ("Now", new)) if (text := disturbances(result))]
    if any(len(figure.spread["rounds"]) < _FEW_ROUNDS for figure in figures):
        warnings.append(f"Some figures come from fewer than {_FEW_ROUNDS} rounds, whose range says little.")
    return warnings


def _direction(old: _Figure, new: _Figure) -> str:
    """`better`, `worse`, or empty if the figure has not changed."""
    then, now = old.spread, new.spread
    apart = then["max"] < now["min"] or now["max"] < then["min"]
    if not apart or abs(now["median"] - then["median"]) <= _MIN_CHANGE * abs(then["median"]):
        return ""
    return "better" if (now["median"] < then["median"]) == new.less else "worse"


def _ratios(result: Result) -> Iterator[tuple[str, _Figure]]:
    for row in result.get("targets", []):
        if row["measured"] and row["against"]:
            yield f"target: {row['target']}", _Figure(row["measured"], row["at_most"])


def _figures(result: Result) -> Iterator[tuple[str, _Figure]]:
    for name, threads in result.get("engines", {}).items():
        for count, figures in threads.items():
            yield f"{name}, threads: {count}, p50_ms", _Figure(figures["p50_ms"])
    for name, entry in result.get("servers", {}).items():
        if "start_s" in entry:
            yield f"{name}, start_s", _Figure(entry["start_s"])
        for key, figures in entry["clients"].items():
            for figure in _COMPARED:
                if figure in figures:
                    yield f"{name}, clients: {key}, {figure}", _Figure(figures[figure], figure != "images_per_s")
