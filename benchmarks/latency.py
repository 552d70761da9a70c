"""Measure latency and throughput on this machine: engines side by side, and our server beside the baseline over HTTP.

    python benchmarks/latency.py

Everything is measured in turn, in one run of about five minutes. Prints tables and writes the figures as JSON and
charts as SVG to benchmarks/results.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

if not __package__:  # started by its path
    import_module("harness.launch").start()

from benchmarks.harness.engines import EnginePlan, measure_engines
from benchmarks.harness.errors import CannotMeasure
from benchmarks.harness.installed import find_installed
from benchmarks.harness.machine import RUNTIME, provenance
from benchmarks.harness.photos import describe_photos, prepare_photos
from benchmarks.harness.progress import Progress
from benchmarks.harness.rounds import measure_servers
from benchmarks.harness.workloads import Photo, Workload, plan_of
from benchmarks.reporting.server_command import add_common, run_command
from benchmarks.reporting.targets import judge
from serve.printable import ArgumentParser, printable_lines

# Clients and seconds of each measurement. There is no target for 4 and 64 clients, and with 64 the baseline's queue
# takes seconds to fill and to empty.
_WORKLOADS: Final = (
    Workload("photo", 1, 2.0),
    Workload("photo", 4, 2.5, rounds=2),
    Workload("photo", 16, 3.5),
    Workload("photo", 64, 2.5, rounds=2),
)


def main() -> int:
    """Run the command and return its exit status."""
    return run_command("latency", _parser(), run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that is installed.

    Raises:
        CannotMeasure: The server's environment is missing, or the photograph cannot be read.
        LoadFailed: The load generator failed.
    """
    result = provenance("latency")
    found = find_installed(options.weights, options.photo)
    for line in found.missing:
        print(printable_lines(f"Left out: {line}"), flush=True)
    if not RUNTIME.is_file():
        raise CannotMeasure("nothing to measure without the server's environment; the command above makes it")
    photos = prepare_photos(options.photo)
    photo, unambiguous = (
        Photo(Path(photos[name]["file"]), photos[name]["expect"]) for name in ("photo", "unambiguous")
    )
    plan = plan_of(_WORKLOADS, options.rounds, options.scale)
    engine_plan = EnginePlan(options.rounds, 0.6 * options.scale, answers=plan.answers)
    progress = Progress(engine_plan.expected_seconds(len(found.engines)) + plan.expected_seconds(found.servers))
    engines, left_out = measure_engines(found.engines, unambiguous.file, unambiguous.expect, engine_plan, progress)
    servers, more = measure_servers(found.servers, found.loop, {"photo": photo}, plan, progress)
    for line in left_out + more:
        progress.say(f"Left out: {line}")
    result |= {
        "seconds": round(progress.end(), 1),
        "versions": found.versions,
        "baseline": found.baseline,
        "photos": describe_photos({"photo": photos["photo"]}),
        "left_out": found.missing + left_out + more,
        "engines": engines,
        "servers": servers,
    }
    return {**result, "targets": judge(result)}


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python benchmarks/latency.py",
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_common(parser)
    parser.set_defaults(rounds=5)
    return parser


if __name__ == "__main__":
    sys.exit(main())
