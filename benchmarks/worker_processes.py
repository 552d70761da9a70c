"""Compare our server as one process, as several (`--workers`), and as one on a single CPU.

python benchmarks/worker_processes.py
"""

import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

if not __package__:  # started by its path
    import_module("harness.launch").start("runtime")

from benchmarks.harness.installed import OURS, our_server
from benchmarks.harness.machine import RUNTIME, usable_cpus, versions
from benchmarks.harness.photos import describe_photos, prepare_photos
from benchmarks.harness.progress import Progress
from benchmarks.harness.rounds import measure_servers
from benchmarks.harness.workloads import Photo, Workload, plan_of
from benchmarks.reporting.records import PrintedResult
from benchmarks.reporting.report import loads, starts
from benchmarks.reporting.server_command import add_common
from serve.printable import ArgumentParser

_WORKLOADS: Final = (Workload("photo", 1, 2.5), Workload("photo", 16, 4.0))


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python benchmarks/worker_processes.py", description=(__doc__ or "").split("\n")[0])
    add_common(parser)
    parser.set_defaults(rounds=5)
    options = parser.parse_args()
    printed = PrintedResult("worker_processes", parser, options)
    prepared = prepare_photos(options.photo)["photo"]
    cpus = str(usable_cpus())
    one = our_server()
    specs = [
        one,
        our_server(f"{OURS}, --workers {cpus}", "--workers", cpus),
        replace(one, name=f"{OURS}, one CPU", command=("taskset", "-c", _first_cpu(), *one.command)),
    ]
    plan = plan_of(_WORKLOADS, options.rounds, options.scale)
    photos = {"photo": Photo(Path(prepared["file"]), prepared["expect"])}
    progress = Progress(plan.expected_seconds(specs))
    servers, left_out = measure_servers(specs, None, photos, plan, progress)
    progress.end()
    figures: dict[str, Any] = {
        "versions": {"runtime": versions(RUNTIME, ["onnxruntime", "numpy", "pillow", "starlette", "uvicorn"])},
        "photos": describe_photos({"photo": prepared}),
        "left_out": left_out,
        "servers": servers,
    }
    for line in [*loads(figures).splitlines(), "", *starts(figures).splitlines()]:
        printed.say(line)
    printed.write(**figures)
    return 1 if left_out else 0


def _first_cpu() -> str:
    return str(min(os.sched_getaffinity(0)))


if __name__ == "__main__":
    sys.exit(main())
