"""Why two sessions: what each way of using all CPUs gives one caller, and what it gives many.

    .venv/runtime/bin/python benchmarks/arrangements.py [MODEL]

Inference alone, on as many CPUs as the process may use; the arrangements take turns. Also what a second session takes
of memory.
"""

import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import onnxruntime as ort

from benchmarks.harness.machine import ROOT
from benchmarks.harness.processes import Tree
from benchmarks.reporting.records import Printed, add_output
from serve.config.cpus import cpu_budget
from serve.printable import ArgumentParser
from serve.scheduling.malloc import trim_malloc, tune_malloc

_LONE: Final = 20
_LOADED_SECONDS: Final = 1.0


def main() -> int:
    """Run the command; the process's exit status."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "models" / "densenet121.int8.onnx")
    parser.add_argument("--rounds", type=int, default=7)
    add_output(parser)
    options = parser.parse_args()
    printed = Printed("arrangements", parser, options)
    tune_malloc()
    path, cpus = options.model, cpu_budget(0).count
    narrow = session(path, 1)
    infer(narrow)
    before = resident_megabytes()
    wide = session(path, cpus)
    infer(wide)
    second = resident_megabytes() - before
    one, gentle = session(path, cpus), session(path, cpus, spinning=False)
    # name: the session a lone caller uses, the one that many share
    arrangements = {
        f"two sessions: {cpus} threads for one caller, 1 each for many": (wide, narrow),
        f"one session, {cpus} threads, {cpus} callers": (one, one),
        f"one session, {cpus} threads that do not spin, {cpus} callers": (gentle, gentle),
        f"one session, 1 thread, {cpus} callers": (narrow, narrow),
    }
    alone: dict[str, list[float]] = {name: [] for name in arrangements}
    loaded: dict[str, list[float]] = {name: [] for name in arrangements}
    for _ in range(options.rounds):
        for name, (lone, shared) in arrangements.items():
            alone[name].append(milliseconds(lone))
            loaded[name].append(rate(shared, cpus))
    best_alone, best_loaded = statistics.median(alone[next(iter(alone))]), statistics.median(loaded[next(iter(loaded))])
    printed.say(f"{path.name}, {cpus} CPUs, medians of {options.rounds} rounds")
    for name in arrangements:
        ms, per_second = statistics.median(alone[name]), statistics.median(loaded[name])
        printed.say(
            f"{name:<66} {ms:6.1f} ms alone ({ms / best_alone:4.2f}), {per_second:6.1f}/s loaded "
            f"({per_second / best_loaded:4.2f})"
        )
    printed.say(f"the second session takes {second:.0f} MB")
    printed.write(second_session_mb=round(second, 1))
    return 0


def resident_megabytes() -> float:
    """RSS of this process, without what malloc keeps for later."""
    trim_malloc()
    return Tree(os.getpid()).memory_mb()["rss"]


def session(path: Path, threads: int, spinning: bool = True) -> Any:
    """An onnxruntime session as the server makes it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def infer(model: Any) -> None:
    """One picture."""
    model.run(["logits"], {"input": np.zeros((1, 3, 224, 224), np.float32)})


def milliseconds(model: Any) -> float:
    """Median time of one caller's inferences."""
    times = []
    for position in range(3 + _LONE):
        started = time.perf_counter()
        infer(model)
        if position >= 3:
            times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def rate(model: Any, callers: int) -> float:
    """Inferences a second of so many callers at a time."""
    counts = [0] * callers
    started = time.perf_counter()

    def call(caller: int) -> None:
        while time.perf_counter() - started < _LOADED_SECONDS:
            infer(model)
            counts[caller] += 1

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
