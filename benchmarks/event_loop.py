"""Measure how many requests a second one process can handle besides decoding and inference.

    python benchmarks/event_loop.py

A stub model replaces decoding and inference; what remains is HTTP, form parsing, the queue, the answer and the log
line. The server runs on one CPU, the clients on the others. This rate divided by the rate that one CPU classifies at is
the number of CPUs from which a second process (`--workers`) pays.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from typing import IO, Final

if not __package__:  # started by its path
    import_module("harness.launch").start("runtime")

from benchmarks.harness.load import Load, run_load
from benchmarks.harness.machine import ROOT, RUNTIME, child_environment
from benchmarks.harness.processes import ProcessTree
from benchmarks.reporting.records import PrintedResult, add_output
from serve.printable import ArgumentParser

_START_SECONDS: Final = 20.0
PHOTO: Final = ROOT / "tests" / "data" / "photos" / "rocket.jpg"


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python benchmarks/event_loop.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--stub", action="store_true", help=argparse.SUPPRESS)
    add_output(parser)
    options = parser.parse_args()
    if options.stub:
        return serve_with_stub_model(options.model)
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        print("event_loop: needs two CPUs, one for the server and one for its clients", file=sys.stderr)
        return 2
    printed = PrintedResult("event_loop", parser, options)
    command = [str(RUNTIME), "-m", "benchmarks.event_loop", "--stub", "--model", options.model]
    with tempfile.TemporaryFile("w+") as log:
        os.sched_setaffinity(0, cpus[:1])  # the server inherits it
        with subprocess.Popen(command, cwd=ROOT, env=child_environment(), stderr=log) as server:
            os.sched_setaffinity(0, cpus[1:])
            try:
                url = _url_of(server, log)
                for form in ("multipart:file", "raw:image/jpeg"):
                    printed.say(_measure(f"{url}/upload", form, ProcessTree(server.pid), options))
            finally:
                server.terminate()
    printed.write()
    return 0


def _measure(url: str, form: str, server: ProcessTree, options: argparse.Namespace) -> str:
    """Measure one way to send an image; return a line about it."""
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


def serve_with_stub_model(model: str) -> int:
    """Run `python -m serve` with a fixed answer in place of the classifier's work; return the exit status."""
    from serve import __main__
    from serve.config.settings import Config
    from serve.model import classifier

    real = classifier.load_classifier(Config(model=model))
    prepared = real.prepare(real.open(PHOTO.read_bytes(), 5))
    answer = real.compute(prepared)
    classifier.Classifier.prepare = lambda self, job: prepared  # type: ignore[method-assign]
    classifier.Classifier.compute = lambda self, prepared, all_threads=False: answer  # type: ignore[method-assign]
    sys.argv = ["serve", "--port", "0", "--model", model, "--log-format", "json"]
    return __main__.main()


def _url_of(server: subprocess.Popen[bytes], log: IO[str]) -> str:
    """The server's address, from the log line that it is ready."""
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        log.seek(0)
        if found := re.search(r'"url": "(http[^"]+)"', log.read()):
            return found[1]
        time.sleep(0.05)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    sys.exit(main())
