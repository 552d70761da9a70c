"""The targets: ratios within one run, so that they hold on a noisy machine, and what was measured for each.

A ratio is the median, over the rounds, of ours against theirs in the same round.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.installed import LOOP, OLD_WAY, OURS, OURS_FP32
from benchmarks.rounds import spread

Result = dict[str, Any]
Spread = dict[str, Any]
Measure = Callable[[Result], tuple[Spread, str] | None]


@dataclass(frozen=True)
class Target:
    """limits: with VNNI and without. at_most: less is better. measure: figure and against whom, if it is there."""

    name: str
    limits: tuple[float, float]
    at_most: bool
    measure: Measure


def judge(result: Result) -> list[dict[str, Any]]:
    """Each target with what was measured: `met` is None where it could not be."""
    vnni = result["machine"]["vnni"]
    rows = []
    for target in TARGETS:
        limit = target.limits[0] if vnni else target.limits[1]
        found = target.measure(result)
        row: dict[str, Any] = {"target": target.name, "at_most": target.at_most, "limit": limit}
        if found:
            figure, against = found
            met = figure["median"] <= limit if target.at_most else figure["median"] >= limit
            row |= {"measured": figure, "against": against, "met": met}
        else:
            row |= {"measured": None, "against": "", "met": None}
        rows.append(row)
    return rows


def peers_of(result: Result) -> list[str]:
    """Names of the peers with our int8 file."""
    others = (OURS, OURS_FP32, OLD_WAY, LOOP)
    return [name for name in result.get("servers", {}) if name not in others and name.endswith("int8")]


def best_peer(result: Result, key: str, figure: str) -> str | None:
    """Who is best at one figure with one load: the least `p50_ms`, the most `images_per_s`."""
    medians = {
        name: found["median"] for name in peers_of(result) if (found := _figure(result, name, key, figure)) is not None
    }
    if not medians:
        return None
    return (min if figure == "p50_ms" else max)(medians, key=lambda name: medians[name])


def ratio(result: Result, key: str, figure: str, other: str) -> Spread | None:
    """Ours against another's, round by round."""
    mine, theirs = _figure(result, OURS, key, figure), _figure(result, other, key, figure)
    if not mine or not theirs or not all(theirs["rounds"]):
        return None
    return spread([one / two for one, two in zip(mine["rounds"], theirs["rounds"], strict=False)])


def _figure(result: Result, name: str, key: str, figure: str) -> Spread | None:
    found: Spread | None = result.get("servers", {}).get(name, {}).get("clients", {}).get(key, {}).get(figure)
    return found


def _against(other: str, key: str, figure: str) -> Measure:
    def measure(result: Result) -> tuple[Spread, str] | None:
        found = ratio(result, key, figure, other)
        return (found, other) if found else None

    return measure


def _against_best_peer(key: str, figure: str) -> Measure:
    def measure(result: Result) -> tuple[Spread, str] | None:
        peer = best_peer(result, key, figure)
        found = ratio(result, key, figure, peer) if peer else None
        return (found, peer) if found and peer else None

    return measure


def _own(key: str, figure: str) -> Measure:
    def measure(result: Result) -> tuple[Spread, str] | None:
        found = _figure(result, OURS, key, figure)
        return (found, "") if found else None

    return measure


def _start(result: Result) -> tuple[Spread, str] | None:
    found: Spread | None = result.get("servers", {}).get(OURS, {}).get("start_s")
    return (found, "") if found else None


TARGETS: Final = (
    Target("p50, 1 client, against the old way", (0.12, 0.2), True, _against(OLD_WAY, "1", "p50_ms")),
    Target("images/s, 16 clients, against the old way", (6, 3.8), False, _against(OLD_WAY, "16", "images_per_s")),
    Target("p50, 1 client, against the best peer, int8", (1, 1), True, _against_best_peer("1", "p50_ms")),
    Target(
        "images/s, 16 clients, against the best peer, int8", (1, 1), False, _against_best_peer("16", "images_per_s")
    ),
    Target("12 MP: p50, 1 client, against the best peer", (0.5, 0.5), True, _against_best_peer("large 1", "p50_ms")),
    Target(
        "12 MP: images/s, 16 clients, against the best peer",
        (2, 2),
        False,
        _against_best_peer("large 16", "images_per_s"),
    ),
    Target(
        "images/s, 16 clients, against the loop without HTTP", (0.95, 0.95), False, _against(LOOP, "16", "images_per_s")
    ),
    Target("p50 beyond decode, preprocess, infer, 1 client, ms", (1, 1.5), True, _own("1", "beyond_ms")),
    Target("p99/p50, 16 clients", (1.5, 1.5), True, _own("16", "p99_to_p50")),
    Target("process start to first right answer, s", (0.7, 0.7), True, _start),
)
