"""Engines without HTTP, in turns: PyTorch eager, onnxruntime fp32 and int8, and OpenVINO where there is one.

Each is a process of its own in the environment it is installed in, given one picture at a time; what waits for its turn
costs nothing, so that all of them meet the same noise.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.machine import usable_cpus
from benchmarks.harness.progress import Progress
from benchmarks.harness.rounds import over_rounds
from benchmarks.harness.workers import Worker, WorkerFailed, WorkerSpec

_START_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Engine:
    """name: as reported. model: what the engine reads; None takes torchvision's own weights from torch's cache."""

    name: str
    python: Path
    kind: str
    model: Path | None


@dataclass(frozen=True)
class Turns:
    """How long it is measured: so many rounds, so many seconds for each engine in each, after untimed pictures.

    answers: how many pictures there are in all rounds together, at least.
    """

    rounds: int
    seconds: float
    untimed: int = 3
    answers: int = 100

    def weight(self, engines: int) -> float:
        """Expected seconds, start included."""
        return engines * len(thread_counts()) * (_START_SECONDS + self.rounds * (self.seconds + 0.3))


def thread_counts() -> list[int]:
    """One thread, and all usable CPUs where those are more."""
    return sorted({1, usable_cpus()})


def measure_engines(
    engines: Sequence[Engine], photo: Path, expect: str, turns: Turns, progress: Progress
) -> tuple[dict[str, Any], list[str]]:
    """Figures by engine and thread count, and what was left out and why."""
    results: dict[str, Any] = {}
    left_out = []
    with contextlib.ExitStack() as stack:
        workers: dict[tuple[str, int], Worker] = {}
        progress.step("engines start", _START_SECONDS * len(engines) * len(thread_counts()))
        for engine in engines:
            for threads in thread_counts():
                workers[engine.name, threads] = worker = Worker(_spec(engine, threads, photo))
                stack.callback(worker.stop)
        for key, worker in list(workers.items()):
            try:
                worker.check(expect)
            except WorkerFailed as error:
                left_out.append(str(error))
                del workers[key]
        measured: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in workers}
        for number in range(turns.rounds):
            for (name, threads), worker in workers.items():
                what = f"round {number + 1} of {turns.rounds}, {name}, {threads} thread{'s' * (threads > 1)}"
                progress.step(what, turns.seconds + 0.3)
                least = math.ceil(turns.answers / turns.rounds)
                cell = worker.measure(seconds=turns.seconds, untimed=turns.untimed, least=least)
                measured[name, threads].append(cell)
        for (name, threads), rounds in measured.items():
            results.setdefault(name, {})[str(threads)] = over_rounds(rounds)
    return results, left_out


def _spec(engine: Engine, threads: int, photo: Path) -> WorkerSpec:
    arguments = ["--engine", engine.kind, "--threads", str(threads), "--photo", str(photo)]
    if engine.model:
        arguments += ["--model", str(engine.model)]
    return WorkerSpec(engine.name, engine.python, "engine_worker.py", tuple(arguments))
