"""Compare `python -m serve classify` with the bare engine, and measure its memory over a tree of very many files.

    python benchmarks/folder.py --photos DIR

The bare engine has as many threads as the command, classifies the same images from memory, and discards the results.
The tree consists of links to the photographs. Prints images a second, the ratio, and resident memory during the run.
"""

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

if not __package__:  # started by its path
    import_module("harness.launch").start("runtime")

from benchmarks.harness.machine import ROOT, RUNTIME
from benchmarks.harness.processes import ProcessTree
from benchmarks.reporting.records import PrintedResult, add_output
from serve.printable import ArgumentParser

FOLDER_SIZE = 1000
SUMMARY = re.compile(r"(\d+) files? in ([\d.]+) s, ([\d.]+) a second: (\d+) classified")


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python benchmarks/folder.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="photographs to link to")
    parser.add_argument("--files", type=int, default=100_000, help="links for the memory run (default: %(default)s)")
    parser.add_argument("--timed", type=int, default=1500, help="links for each timed run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="auto", help="for the timed runs, as for python -m serve")
    parser.add_argument("--small-model", default="tests/data/tiny.onnx", help="for the memory run")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    add_output(parser)
    options = parser.parse_args()
    photos = sorted(path.resolve() for path in options.photos.iterdir() if path.is_file())
    if options.bare:
        print(json.dumps(bare(photos, options.model, options.timed)))
        return 0
    printed = PrintedResult("folder", parser, options)
    with tempfile.TemporaryDirectory() as name:
        timed, tree = Path(name, "timed"), Path(name, "tree")
        link_photos(timed, photos, options.timed)
        rates: dict[str, list[float]] = {"classify": [], "bare": []}
        for _ in range(options.rounds):
            rates["bare"].append(run_bare(options)["rate"])
            rates["classify"].append(run_classify(timed, options.model)[0])
        ours, theirs = (statistics.median(rates[each]) for each in ("classify", "bare"))
        printed.say(f"classify {ours:.1f} a second, bare engine {theirs:.1f}; ratio {ours / theirs:.3f}")
        printed.say(f"rounds: classify {format_rates(rates['classify'])}, bare {format_rates(rates['bare'])}")
        link_photos(tree, photos, options.files)
        rate, memory = run_classify(tree, options.small_model)
        early, late = memory[len(memory) // 10], memory[-1]
        printed.say(
            f"{options.files} files at {rate:.1f} a second: {early:.0f} MB after a tenth of the time, {late:.0f} at "
            f"the end ({late / early - 1:+.1%}), {max(memory):.0f} at the peak"
        )
    printed.write(rates=rates, ratio=ours / theirs)
    return 0


def link_photos(folder: Path, photos: list[Path], count: int) -> None:
    """Make so many links to the photographs, a thousand in each folder."""
    for number, photo in zip(range(count), itertools.cycle(photos)):
        place = folder / f"{number // FOLDER_SIZE:04}"
        if number % FOLDER_SIZE == 0:
            place.mkdir(parents=True)
        (place / f"{number % FOLDER_SIZE:03}{photo.suffix}").symlink_to(photo)


def run_classify(folder: Path, model: str) -> tuple[float, list[float]]:
    """Run the command; return the images a second that it prints, and its RSS in MB, sampled every half second."""
    command = [str(RUNTIME), "-m", "serve", "classify", str(folder), "--model", model, "--output", os.devnull]
    memory: list[float] = []
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        tree = ProcessTree(process.pid)
        while process.poll() is None:
            memory.append(tree.memory_mb()["rss"])
            time.sleep(0.5)
        printed = process.stderr.read() if process.stderr else ""
    found = SUMMARY.search(printed)
    if process.returncode or not found or found[1] != found[4]:
        raise SystemExit(f"classify left with {process.returncode}: {printed}")
    return float(found[3]), [each for each in memory if each] or [0.0]


def run_bare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the bare engine in a process of its own."""
    command = [str(RUNTIME), "-m", "benchmarks.folder", "--bare"]
    command += ["--photos", str(options.photos.resolve()), "--timed", str(options.timed)]
    done = subprocess.run([*command, "--model", options.model], cwd=ROOT, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def bare(photos: list[Path], model: str, count: int) -> dict[str, float]:
    """Measure the images a second of the engine alone."""
    from serve.config.cpus import cpu_budget
    from serve.config.settings import load_config
    from serve.imaging.malloc import tune_malloc
    from serve.model.classifier import load_classifier

    tune_malloc(arenas=cpu_budget(0).count + 1)
    config = load_config(["--model", model], os.environ)
    classifier = load_classifier(config)
    images = [path.read_bytes() for path in photos]
    numbers = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            classifier.classify(images[number % len(images)], 5)

    threads = [threading.Thread(target=work) for _ in range(config.thread_plan.streams)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"rate": count / (time.perf_counter() - started)}


def format_rates(rates: list[float]) -> str:
    """The rates of all rounds."""
    return ", ".join(f"{rate:.1f}" for rate in rates)


if __name__ == "__main__":
    sys.exit(main())
