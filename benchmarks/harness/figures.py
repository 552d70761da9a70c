"""Measurements of several rounds → figures: median, minimum, maximum."""

import statistics
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.harness.load import PERCENTILES, percentiles

Result = dict[str, Any]  # what a command writes to benchmarks/results, as JSON

_FIGURES: Final = ("images_per_s", "beyond_ms", "load_cpu_share", "others_cpu_share")


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, minimum, maximum, and all values in order."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "rounds": [round(value, 4) for value in values],
    }


def combine_rounds(measurements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Times and rates of all rounds.

    A percentile for which some round has too few answers is computed from all rounds' answers together, or left out.
    """
    together = percentiles([each for measurement in measurements for each in measurement.get("ms", ())])
    figures: dict[str, Any] = {}
    for name in (*(f"p{percent}_ms" for percent in PERCENTILES), *_FIGURES):
        values = [measurement[name] for measurement in measurements if measurement.get(name) is not None]
        if name in together and len(values) < len(measurements):
            values = [together[name]] if together[name] is not None else []
        if values:
            figures[name] = spread(values)
    return figures


def summarize(measurements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one workload; those that no round has are left out."""
    figures = combine_rounds(measurements)
    stages = [measurement["stages_ms"] for measurement in measurements if measurement.get("stages_ms")]
    if stages:
        figures["stages_ms"] = {name: spread([entry[name] for entry in stages if name in entry]) for name in stages[0]}
    ratios = [
        measurement["p99_ms"] / measurement["p50_ms"] for measurement in measurements if measurement.get("p99_ms")
    ]
    if ratios:
        figures["p99_to_p50"] = spread(ratios)
    for name in ("images", "errors", "wrong"):
        figures[name] = sum(measurement.get(name, 0) for measurement in measurements)
    failures = {what: 0 for measurement in measurements for what in measurement.get("failures", {})}
    for what in failures:
        failures[what] = sum(measurement.get("failures", {}).get(what, 0) for measurement in measurements)
    return {**figures, **({"failures": failures} if failures else {})}
