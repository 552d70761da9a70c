"""The export's report: size, speed and accuracy of each variant, printed and written beside the models.

Timings differ from run to run, so they have a file of their own: the same inputs always give the same model files.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.engines import CPU
from export.evaluate import Comparison, cpu, measure_latency


@dataclass(frozen=True)
class Variant:
    """A model file to write: `fp32` or `int8`, for an engine, and int8 on that engine compared with fp32, if it was."""

    name: str
    path: Path
    content: bytes
    comparison: Comparison | None = None
    engine: str = CPU


def make_report(
    variants: list[Variant],
    weights_sha256: str | None,
    weights_file: Path | None,
    side: int,
) -> dict[str, Any]:
    """Times the variants and returns the report, which is written beside them as `NAME.json` and shown by the server.

    Args:
        variants: the models, fp32 first.
        weights_sha256: of the weights' file, None for untrained weights.
        weights_file: the file that the user gave, so that benchmarks find it again. It stays on this machine.
        side: height and width of the models' input, pixels.
    """
    contents = {variant.path.name: variant.content for variant in variants}
    one, two = (measure_latency(contents, side, threads) for threads in (1, 2))
    table = []
    for variant in variants:
        is_int8, comparison = variant.name == "int8", variant.comparison
        top1 = None if comparison is None else comparison.top1 if is_int8 else comparison.reference_top1
        table.append(
            {
                "variant": variant.name,
                "engine": variant.engine,
                "sha256": hashlib.sha256(variant.content).hexdigest(),
                "megabytes": round(len(variant.content) / 1e6, 2),
                "ms_1_thread": round(one[variant.path.name], 2),
                "ms_2_threads": round(two[variant.path.name], 2),
                "top1": None if top1 is None else round(top1, 4),
                "agreement": round(comparison.agreement, 4) if is_int8 and comparison else 1.0,
                "clear_agreement": _clear_agreement(comparison) if is_int8 else 1.0,
                "max_abs_logit_difference": round(comparison.max_abs_difference, 2) if is_int8 and comparison else 0.0,
            }
        )
    given = {} if weights_file is None else {"weights_file": str(weights_file.resolve())}
    return {"weights_sha256": weights_sha256, **given, "cpu": cpu(), "table": table}


def _clear_agreement(comparison: Comparison | None) -> float | None:
    return None if comparison is None or comparison.clear_agreement is None else round(comparison.clear_agreement, 4)


def print_table(table: list[dict[str, Any]]) -> None:
    """Prints the report's table; "if clear" is the agreement where fp32's first two classes are well apart."""
    print(
        f"\n{'variant':<8} {'engine':<8} {'MB':>6} {'ms 1 thr':>9} {'ms 2 thr':>9} "
        f"{'top-1':>7} {'agrees':>7} {'if clear':>8} {'max |Δ logit|':>14}"
    )
    for row in table:
        top1, clear = ("–" if row[key] is None else f"{row[key]:.1%}" for key in ("top1", "clear_agreement"))
        print(
            f"{row['variant']:<8} {row['engine']:<8} {row['megabytes']:>6.1f} {row['ms_1_thread']:>9.1f} "
            f"{row['ms_2_threads']:>9.1f} {top1:>7} {row['agreement']:>7.1%} {clear:>8} "
            f"{row['max_abs_logit_difference']:>14.2f}"
        )
