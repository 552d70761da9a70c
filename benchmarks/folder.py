"""`python -m serve classify` beside the bare engine, in turns, and its memory over a tree of very many files.

    python benchmarks/folder.py --photos DIR

The bare engine is as many threads as the command has, classifying the same pictures from memory and keeping nothing.
The tree is made of links to the photographs. Prints pictures a second, their ratio, and resident memory along the way.
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
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from benchmarks.harness.machine import ROOT
from benchmarks.harness.machine import RUNTIME as PYTHON
from benchmarks.harness.processes import Tree
from benchmarks.reporting.records import Printed, add_output
from serve.printable import ArgumentParser

FOLDER_SIZE = 1000
SUMMARY = re.compile(r"(\d+) files? in ([\d.]+) s, ([\d.]+) a second: (\d+) classified")


def main() -> int:
    """Run the command; the process's exit status."""
    parser = ArgumentParser(prog="python benchmarks/folder.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="photographs to link to")
    parser.add_argument("--files", type=int, default=100_000, help="links, for memory (default: %(default)s)")
    parser.add_argument("--timed", type=int, default=1500, help="links, for each timed run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="auto", help="for the timed runs, as the server's own flag")
    parser.add_argument("--small-model", default="tests/data/tiny.onnx", help="for the run over all files")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    add_output(parser)
    options = parser.parse_args()
    photos = sorted(path.resolve() for path in options.photos.iterdir() if path.is_file())
    if options.bare:
        print(json.dumps(bare(photos, options.model, options.timed)))
        return 0
    printed = Printed("folder", parser, options)
    with tempfile.TemporaryDirectory() as name:
        timed, tree = Path(name, "timed"), Path(name, "tree")
        plant(timed, photos, options.timed)
        rates: dict[str, list[float]] = {"classify": [], "bare": []}
        for _ in range(options.rounds):
            rates["bare"].append(run_bare(options)["rate"])
            rates["classify"].append(run_classify(timed, options.model)[0])
        ours, theirs = (statistics.median(rates[each]) for each in ("classify", "bare"))
        printed.say(f"classify {ours:.1f} a second, bare engine {theirs:.1f}; ratio {ours / theirs:.3f}")
        printed.say(f"rounds: classify {shown(rates['classify'])}, bare {shown(rates['bare'])}")
        plant(tree, photos, options.files)
        rate, memory = run_classify(tree, options.small_model)
        early, late = memory[len(memory) // 10], memory[-1]
        printed.say(
            f"{options.files} files at {rate:.1f} a second: {early:.0f} MB after a tenth of the time, {late:.0f} at "
            f"the end ({late / early - 1:+.1%}), {max(memory):.0f} at the peak"
        )
    printed.write(rates=rates, ratio=ours / theirs)
    return 0


def plant(folder: Path, photos: list[Path], count: int) -> None:
    """So many links to the photographs, a thousand in each folder."""
    for number, photo in zip(range(count), itertools.cycle(photos)):
        place = folder / f"{number // FOLDER_SIZE:04}"
        if number % FOLDER_SIZE == 0:
            place.mkdir(parents=True)
        (place / f"{number % FOLDER_SIZE:03}{photo.suffix}").symlink_to(photo)


def run_classify(folder: Path, model: str) -> tuple[float, list[float]]:
    """Pictures a second as the command says, and its resident megabytes, once in each half second."""
    command = [str(PYTHON), "-m", "serve", "classify", str(folder), "--model", model, "--output", os.devnull]
    memory: list[float] = []
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        tree = Tree(process.pid)
        while process.poll() is None:
            memory.append(tree.memory_mb()["rss"])
            time.sleep(0.5)
        printed = process.stderr.read() if process.stderr else ""
    found = SUMMARY.search(printed)
    if process.returncode or not found or found[1] != found[4]:
        raise SystemExit(f"classify left with {process.returncode}: {printed}")
    return float(found[3]), [each for each in memory if each] or [0.0]


def run_bare(options: argparse.Namespace) -> dict[str, Any]:
    command = [str(PYTHON), __file__, "--bare", "--photos", str(options.photos), "--timed", str(options.timed)]
    done = subprocess.run([*command, "--model", options.model], cwd=ROOT, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def bare(photos: list[Path], model: str, count: int) -> dict[str, float]:
    """Pictures a second of the engine alone."""
    from serve.config.settings import load_config
    from serve.model.classifier import load_classifier
    from serve.scheduling.malloc import tune_malloc

    tune_malloc()
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


def shown(rates: list[float]) -> str:
    """Each round's."""
    return ", ".join(f"{rate:.1f}" for rate in rates)


if __name__ == "__main__":
    sys.exit(main())
