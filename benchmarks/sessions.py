"""Measure why the server has two sessions: one caller's latency and many callers' throughput, by session and threads.

    python benchmarks/sessions.py [MODEL]

Measures inference alone, on all CPUs the process may use; the setups take turns. Also measures the memory of a second
session.
"""

import os
import statistics
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Final

if not __package__:  # started by its path
    import_module("harness.launch").start("runtime")

import numpy as np
import onnxruntime as ort

from benchmarks.harness.machine import ROOT
from benchmarks.harness.model_input import input_of
from benchmarks.harness.processes import ProcessTree
from benchmarks.reporting.records import PrintedResult, add_output
from serve.config.cpus import cpu_budget
from serve.imaging.malloc import trim_malloc, tune_malloc
from serve.printable import ArgumentParser

_SINGLE_CALLS: Final = 20
_LOADED_SECONDS: Final = 1.0


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python benchmarks/sessions.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "models" / "densenet121.int8.onnx")
    parser.add_argument("--rounds", type=int, default=7)
    add_output(parser)
    options = parser.parse_args()
    printed = PrintedResult("sessions", parser, options)
    path, cpus = options.model, cpu_budget(0).count
    tune_malloc(arenas=cpus + 1)
    throughput_session = session(path, 1)
    infer(throughput_session)
    before = resident_megabytes()
    latency_session = session(path, cpus)
    infer(latency_session)
    second = resident_megabytes() - before
    spinning, not_spinning = session(path, cpus), session(path, cpus, spinning=False)
    # name: the session that a single caller uses, and the one that many callers share
    setups = {
        f"two sessions: {cpus} threads for one caller, 1 each for many": (latency_session, throughput_session),
        f"one session, {cpus} threads, {cpus} callers": (spinning, spinning),
        f"one session, {cpus} threads that do not spin, {cpus} callers": (not_spinning, not_spinning),
        f"one session, 1 thread, {cpus} callers": (throughput_session, throughput_session),
    }
    alone: dict[str, list[float]] = {name: [] for name in setups}
    loaded: dict[str, list[float]] = {name: [] for name in setups}
    for _ in range(options.rounds):
        for name, (single, shared) in setups.items():
            alone[name].append(milliseconds(single))
            loaded[name].append(rate(shared, cpus))
    first = next(iter(setups))
    first_alone, first_loaded = statistics.median(alone[first]), statistics.median(loaded[first])
    printed.say(f"{path.name}, {cpus} CPUs, medians of {options.rounds} rounds")
    for name in setups:
        ms, per_second = statistics.median(alone[name]), statistics.median(loaded[name])
        printed.say(
            f"{name:<66} {ms:6.1f} ms alone ({ms / first_alone:4.2f}), {per_second:6.1f}/s loaded "
            f"({per_second / first_loaded:4.2f})"
        )
    printed.say(f"the second session takes {second:.0f} MB")
    printed.write(second_session_mb=round(second, 1))
    return 0


def resident_megabytes() -> float:
    """RSS of this process in MB, without memory that malloc holds for reuse."""
    trim_malloc()
    return ProcessTree(os.getpid()).memory_mb()["rss"]


def session(path: Path, threads: int, spinning: bool = True) -> Any:
    """An onnxruntime session with the server's options."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def infer(model: Any) -> None:
    """Run the model on one image."""
    pixels = np.zeros((1, 224, 224, 3), np.uint8)
    model.run(["logits"], {"input": input_of(model, pixels)})


def milliseconds(model: Any) -> float:
    """Median latency of a single caller."""
    times = []
    for position in range(3 + _SINGLE_CALLS):
        started = time.perf_counter()
        infer(model)
        if position >= 3:
            times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def rate(model: Any, callers: int) -> float:
    """Inferences a second with so many concurrent callers."""
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
