"""The targets and their verdicts. Most are ratios within one run, which hold on a noisy machine, too.

A ratio is the median over the rounds of ours against theirs in the same round. Figures measured with errors or wrong
answers do not count, and ours also miss a target.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from benchmarks.harness.figures import Result, spread
from benchmarks.harness.installed import BASELINE, LOOP, OURS, OURS_OPENVINO, PLUG_IN
from benchmarks.harness.peer_catalogue import DRAFT

Spread = dict[str, Any]
Measure = Callable[[Result], tuple[Spread, str] | None]


@dataclass(frozen=True)
class Target:
    """A target.

    Attributes:
        limits: With VNNI and without.
        at_most: Whether less is better.
        measure: Gives the figure and what it is compared with, or None if it was not measured.
        share: The least part of the rounds within the limit; the median has to be, too.
    """

    name: str
    limits: tuple[float, float]
    at_most: bool
    measure: Measure
    share: Fraction = Fraction(0)


def judge(result: Result) -> list[dict[str, Any]]:
    """Each target with its figure; `met` is None if it was not measured."""
    vnni = result["machine"]["vnni"]
    rows = []
    for target in TARGETS:
        limit = target.limits[0] if vnni else target.limits[1]
        found = target.measure(result)
        row: dict[str, Any] = {"target": target.name, "at_most": target.at_most, "limit": limit}
        if found:
            figure, against = found
            within = [
                value <= limit if target.at_most else value >= limit for value in (figure["median"], *figure["rounds"])
            ]
            won = sum(within[1:])
            met = within[0] and won >= target.share * len(figure["rounds"])
            row |= {"measured": figure, "against": against, "won": won, "met": met}
        else:
            row |= {"measured": None, "against": "", "met": None}
        rows.append(row)
    return rows


def failures(result: Result) -> int | None:
    """Errors and wrong answers of our server in all its configurations; None if it was not measured."""
    ours = [entry for name, entry in result.get("servers", {}).items() if name.partition(",")[0] == OURS]
    loads = [figures for entry in ours for figures in entry["clients"].values()]
    return sum(figures["errors"] + figures["wrong"] for figures in loads) if loads else None


def best_peer(result: Result, key: str, figure: str, draft: bool = False) -> str | None:
    """The peer with our int8 weights that is best at a figure of a workload; None if there is none.

    Args:
        key: The workload.
        figure: `p50_ms`, of which least is best, or `images_per_s`.
        draft: Only consider those that decode at a reduced scale.
    """
    peers = [name for name in result.get("servers", {}) if name.endswith(f", int8{DRAFT if draft else ''}")]
    medians = {name: found["median"] for name in peers if (found := _figure(result, name, key, figure)) is not None}
    if not medians:
        return None
    return (min if figure == "p50_ms" else max)(medians, key=lambda name: medians[name])


def ratio(result: Result, key: str, figure: str, other: str, ours: str = OURS) -> Spread | None:
    """The ratio of ours to another's, round by round; None if either was not measured."""
    return _ratio(_figure(result, ours, key, figure), _figure(result, other, key, figure))


def _ratio(mine: Spread | None, theirs: Spread | None) -> Spread | None:
    if not mine or not theirs or not all(theirs["rounds"]):
        return None
    return spread([one / two for one, two in zip(mine["rounds"], theirs["rounds"], strict=False)])


def _figure(result: Result, name: str, key: str, figure: str) -> Spread | None:
    load = result.get("servers", {}).get(name, {}).get("clients", {}).get(key, {})
    found: Spread | None = load.get(figure)
    return None if load.get("errors") or load.get("wrong") else found


def _against(other: str, key: str, figure: str, ours: str = OURS) -> Measure:
    def measure(result: Result) -> tuple[Spread, str] | None:
        found = ratio(result, key, figure, other, ours)
        return (found, other) if found else None

    return measure


def _against_best_peer(key: str, figure: str, draft: bool = False, ours: str = OURS) -> Measure:
    def measure(result: Result) -> tuple[Spread, str] | None:
        peer = best_peer(result, key, figure, draft)
        found = ratio(result, key, figure, peer, ours) if peer else None
        return (found, peer) if found and peer else None

    return measure


def _own(key: str, figure: str) -> Measure:
    def measure(result: Result) -> tuple[Spread, str] | None:
        found = _figure(result, OURS, key, figure)
        return (found, "") if found else None

    return measure


def _start(ours: str) -> Measure:
    def measure(result: Result) -> tuple[Spread, str] | None:
        found: Spread | None = result.get("servers", {}).get(ours, {}).get("start_s")
        return (found, "") if found else None

    return measure


def _on_amx(measure: Measure) -> Measure:
    """Counts on CPUs with AMX only, where `auto` takes OpenVINO."""
    return lambda result: measure(result) if "amx_int8" in result["machine"]["features"] else None


def _engine(all_threads: bool) -> Measure:
    """OpenVINO's plug-in against the `cpu` engine, with one thread or with the most that were measured."""

    def measure(result: Result) -> tuple[Spread, str] | None:
        plug_in, cpu = (result.get("engines", {}).get(name, {}) for name in (PLUG_IN, "onnxruntime int8"))
        counts = sorted(plug_in.keys() & cpu.keys(), key=int)
        if not counts or (all_threads and len(counts) == 1):
            return None
        count = counts[-1] if all_threads else counts[0]
        found = _ratio(plug_in[count]["p50_ms"], cpu[count]["p50_ms"])
        return (found, "") if found else None

    return measure


def _memory(result: Result) -> tuple[Spread, str] | None:
    loaded = result.get("servers", {}).get(OURS_OPENVINO, {}).get("loaded_mb")
    return (spread([loaded["pss"]]), "") if loaded else None


def _failures(result: Result) -> tuple[Spread, str] | None:
    count = failures(result)
    return None if count is None else (spread([count]), "")


_MOST: Final = Fraction(7, 9)
_IN_FULL, _DRAFT = "against the best peer, which decodes in full", "against the best peer with Image.draft"

_OPENVINO_TARGETS: Final = tuple(
    Target(f"OpenVINO with AMX: {name}", (limit, limit), at_most, _on_amx(measure))
    for name, limit, at_most, measure in (
        ("engine, 1 thread, against cpu", 0.72, True, _engine(all_threads=False)),
        ("engine, all CPUs, against cpu", 0.82, True, _engine(all_threads=True)),
        ("p50, 1 client, against cpu", 0.88, True, _against(OURS, "1", "p50_ms", OURS_OPENVINO)),
        ("p50, 1 client, against the best peer", 0.85, True, _against_best_peer("1", "p50_ms", ours=OURS_OPENVINO)),
        ("images/s, 16 clients, against cpu", 1.35, False, _against(OURS, "16", "images_per_s", OURS_OPENVINO)),
        (
            "images/s, 16 clients, against the best peer",
            1.4,
            False,
            _against_best_peer("16", "images_per_s", ours=OURS_OPENVINO),
        ),
        ("memory after load, MB (PSS)", 500, True, _memory),
        ("start to first right answer, compiled model kept, s", 1.5, True, _start(OURS_OPENVINO)),
    )
)
TARGETS: Final = (
    Target("p50, 1 client, against the baseline", (0.12, 0.2), True, _against(BASELINE, "1", "p50_ms")),
    Target("images/s, 16 clients, against the baseline", (6, 3.8), False, _against(BASELINE, "16", "images_per_s")),
    Target("p50, 1 client, against the best peer, int8", (1, 1), True, _against_best_peer("1", "p50_ms"), _MOST),
    Target(
        "images/s, 16 clients, against the best peer, int8",
        (1, 1),
        False,
        _against_best_peer("16", "images_per_s"),
        _MOST,
    ),
    Target(f"12 MP: p50, 1 client, {_IN_FULL}", (0.45, 0.45), True, _against_best_peer("large 1", "p50_ms")),
    Target(f"12 MP: p50, 1 client, {_DRAFT}", (1, 1), True, _against_best_peer("large 1", "p50_ms", draft=True)),
    Target(
        f"12 MP: images/s, 16 clients, {_IN_FULL}", (2.2, 2.2), False, _against_best_peer("large 16", "images_per_s")
    ),
    Target(
        f"12 MP: images/s, 16 clients, {_DRAFT}",
        (1, 1),
        False,
        _against_best_peer("large 16", "images_per_s", draft=True),
    ),
    Target(
        "images/s, 16 clients, against the loop without HTTP", (0.95, 0.95), False, _against(LOOP, "16", "images_per_s")
    ),
    Target("p50 beyond decode, preprocess, infer, 1 client, ms", (1, 1.5), True, _own("1", "beyond_ms")),
    Target("p99/p50, 16 clients", (1.5, 1.5), True, _own("16", "p99_to_p50")),
    Target("process start to first right answer, s", (0.7, 0.7), True, _start(OURS)),
    Target("errors and wrong answers", (0, 0), True, _failures),
    *_OPENVINO_TARGETS,
)
