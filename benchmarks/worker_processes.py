"""Our server as one process, as several (`--workers`), and as one on a single CPU: times, rates and memory, in turns.

python benchmarks/worker_processes.py
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.harness.installed import OURS, our_server
from benchmarks.harness.machine import RUNTIME, usable_cpus, versions
from benchmarks.harness.progress import Progress
from benchmarks.harness.rounds import Photo, Step, measure_servers
from benchmarks.latency import add_common, described, plan_of, prepare
from benchmarks.reporting.records import Printed
from benchmarks.reporting.report import loads, starts
from serve.printable import ArgumentParser

_STEPS: Final = (Step("photo", 1, 2.5), Step("photo", 16, 4.0))


def main() -> int:
    """Run the command; the process's exit status."""
    parser = ArgumentParser(prog="python benchmarks/worker_processes.py", description=(__doc__ or "").split("\n")[0])
    add_common(parser)
    parser.set_defaults(rounds=5, starts=3)
    options = parser.parse_args()
    printed = Printed("worker_processes", parser, options)
    prepared = prepare(options.photo)["photo"]
    cpus = str(usable_cpus())
    one = our_server()
    contenders = [
        one,
        our_server(f"{OURS}, --workers {cpus}", "--workers", cpus),
        replace(one, name=f"{OURS}, one CPU", command=("taskset", "-c", _first_cpu(), *one.command)),
    ]
    plan = plan_of(_STEPS, options)
    photos = {"photo": Photo(Path(prepared["file"]), prepared["expect"])}
    progress = Progress(plan.weight(contenders))
    servers, left_out = measure_servers(contenders, None, photos, plan, progress)
    progress.end()
    figures: dict[str, Any] = {
        "versions": {"runtime": versions(RUNTIME, ["onnxruntime", "numpy", "pillow", "starlette", "uvicorn"])},
        "photos": described({"photo": prepared}),
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
