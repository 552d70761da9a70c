"""Why two sessions: what each way of using all CPUs gives one caller, and what it gives many.

    .venv/runtime/bin/python benchmarks/arrangements.py [MODEL]

Inference alone, on as many CPUs as the process may use; the arrangements take turns.
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
ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import onnxruntime as ort

from serve.cpus import cpu_budget
from serve.printable import printable

_ROUNDS: Final = 7
_LONE: Final = 20
_LOADED_SECONDS: Final = 1.0


def main() -> int:
    """Run the command."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "models" / "densenet121.int8.onnx"
    cpus = cpu_budget(0).count
    narrow, wide = session(path, 1), session(path, cpus)
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
    for _ in range(_ROUNDS):
        for name, (lone, shared) in arrangements.items():
            alone[name].append(milliseconds(lone))
            loaded[name].append(rate(shared, cpus))
    best_alone, best_loaded = statistics.median(alone[next(iter(alone))]), statistics.median(loaded[next(iter(loaded))])
    print(printable(f"{path.name}, {cpus} CPUs, medians of {_ROUNDS} rounds"))
    for name in arrangements:
        ms, per_second = statistics.median(alone[name]), statistics.median(loaded[name])
        print(
            f"{name:<66} {ms:6.1f} ms alone ({ms / best_alone:4.2f}), {per_second:6.1f}/s loaded "
            f"({per_second / best_loaded:4.2f})"
        )
    return 0


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
