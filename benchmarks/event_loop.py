"""How many requests a second one process can carry, if pictures cost nothing: HTTP, form, queue, answer, log line.

    python benchmarks/event_loop.py

Decoding and inference are replaced by an answer that lies ready, for this measurement only. The server has one CPU, the
clients the others. What one process carries, divided by what one CPU classifies, is the number of CPUs at which a
second process (`--workers`) begins to pay.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Final

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from benchmarks.harness.load import Load, run_load
from benchmarks.harness.machine import ROOT, RUNTIME, quiet_environment
from benchmarks.harness.processes import Tree
from benchmarks.reporting.records import Printed, add_output
from serve.printable import ArgumentParser

_START_SECONDS: Final = 20.0
PHOTO: Final = ROOT / "tests" / "data" / "photos" / "rocket.jpg"


def main() -> int:
    """Run the command; the process's exit status."""
    parser = ArgumentParser(prog="python benchmarks/event_loop.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--stub", action="store_true", help=argparse.SUPPRESS)
    add_output(parser)
    options = parser.parse_args()
    if options.stub:
        return serve_what_lies_ready(options.model)
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        print("event_loop: this takes two CPUs, one for the server and one for its clients", file=sys.stderr)
        return 2
    printed = Printed("event_loop", parser, options)
    command = [str(RUNTIME), __file__, "--stub", "--model", options.model]
    with tempfile.TemporaryFile("w+") as log:
        os.sched_setaffinity(0, cpus[:1])  # the server inherits it
        with subprocess.Popen(command, cwd=ROOT, env=quiet_environment(), stderr=log) as server:
            os.sched_setaffinity(0, cpus[1:])
            try:
                url = _url_of(server, log)
                for form in ("multipart:file", "raw:image/jpeg"):
                    printed.say(_measure(f"{url}/upload", form, Tree(server.pid), options))
            finally:
                server.terminate()
    printed.write()
    return 0


def _measure(url: str, form: str, server: Tree, options: argparse.Namespace) -> str:
    """A line about one way to send a picture."""
    rates, costs, shares = [], [], []
    for _ in range(options.rounds):
        before = server.cpu_seconds()
        result = run_load(Load(url, PHOTO.read_bytes(), form, clients=options.clients, seconds=options.seconds))
        if result["errors"] or result["wrong"]:
            raise SystemExit(f"the server failed: {result['failures']}")
        rates.append(result["images_per_s"])
        costs.append(1000 * (server.cpu_seconds() - before) / result["images"])
        shares.append(result["load_cpu_share"])
    return (
        f"{form:<16}{statistics.median(rates):>7.0f} requests a second ({min(rates):.0f}–{max(rates):.0f}), "
        f"{statistics.median(costs):.2f} ms of the server's CPU each; the clients took {max(shares):.0%} of a CPU"
    )


def serve_what_lies_ready(model: str) -> int:
    """`python -m serve` with an answer in place of the classifier's work; the process's exit status."""
    from serve import __main__
    from serve.config.settings import Config
    from serve.model import classifier

    real = classifier.load_classifier(Config(model=model))
    prepared = real.prepare(real.open(PHOTO.read_bytes(), 5))
    answer = real.compute(prepared)
    classifier.Classifier.prepare = lambda self, job: prepared  # type: ignore[method-assign]
    classifier.Classifier.compute = lambda self, prepared, wide=False: answer  # type: ignore[method-assign]
    sys.argv = ["serve", "--port", "0", "--model", model, "--log-format", "json"]
    return __main__.main()


def _url_of(server: subprocess.Popen[bytes], log: IO[str]) -> str:
    """Its address, from the line that says that it is ready."""
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        log.seek(0)
        if found := re.search(r'"url": "(http[^"]+)"', log.read()):
            return found[1]
        time.sleep(0.05)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    sys.exit(main())
