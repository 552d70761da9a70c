"""Measures engines without HTTP, in turn: PyTorch eager, onnxruntime fp32 and int8, and OpenVINO if installed.

Each runs in a process of its own, in the environment it is installed in, and gets one image at a time. An engine that
waits for its turn uses no CPU, so that noise on the machine affects all alike.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.errors import WorkerFailed
from benchmarks.harness.figures import combine_rounds
from benchmarks.harness.machine import usable_cpus
from benchmarks.harness.progress import Progress
from benchmarks.harness.workers import Worker, WorkerSpec

_START_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Engine:
    """An engine to measure.

    Attributes:
        name: As reported.
        python: Of the environment it is installed in.
        kind: As `engine_worker.py` calls it.
        model: The file it reads; None takes torchvision's weights from torch's cache.
    """

    name: str
    python: Path
    kind: str
    model: Path | None


@dataclass(frozen=True)
class EnginePlan:
    """How long engines are measured.

    Attributes:
        seconds: For each engine in each round.
        untimed: Images that each engine classifies before its time is taken.
        answers: Minimum number of images, all rounds together.
    """

    rounds: int
    seconds: float
    untimed: int = 3
    answers: int = 100

    def expected_seconds(self, engines: int) -> float:
        """The time that the plan takes, start included."""
        return engines * len(thread_counts()) * (_START_SECONDS + self.rounds * (self.seconds + 0.3))


def thread_counts() -> list[int]:
    """The thread counts to measure: 1, and the number of usable CPUs."""
    return sorted({1, usable_cpus()})


def measure_engines(
    engines: Sequence[Engine], photo: Path, expect: str, plan: EnginePlan, progress: Progress
) -> tuple[dict[str, Any], list[str]]:
    """Measure the engines on one photograph whose right answers are `expect`.

    Returns:
        Figures by engine and thread count, and a line for each engine that was left out, with the reason.
    """
    results: dict[str, Any] = {}
    left_out = []
    with contextlib.ExitStack() as stack:
        workers: dict[tuple[str, int], Worker] = {}
        progress.step("engines start", _START_SECONDS * len(engines) * len(thread_counts()))
        for engine in engines:
            for threads in thread_counts():
                workers[engine.name, threads] = worker = Worker(_worker_spec(engine, threads, photo))
                stack.callback(worker.stop)
        for key, worker in list(workers.items()):
            try:
                worker.check(expect)
            except WorkerFailed as error:
                left_out.append(str(error))
                del workers[key]
        measured: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in workers}
        min_answers = math.ceil(plan.answers / plan.rounds)
        for number in range(plan.rounds):
            for (name, threads), worker in workers.items():
                what = f"round {number + 1} of {plan.rounds}, {name}, {threads} thread{'s' * (threads > 1)}"
                progress.step(what, plan.seconds + 0.3)
                measurement = worker.measure(seconds=plan.seconds, untimed=plan.untimed, min_answers=min_answers)
                measured[name, threads].append(measurement)
        for (name, threads), rounds in measured.items():
            results.setdefault(name, {})[str(threads)] = combine_rounds(rounds)
    return results, left_out


def _worker_spec(engine: Engine, threads: int, photo: Path) -> WorkerSpec:
    arguments = [
        "-m",
        "benchmarks.harness.engine_worker",
        "--engine",
        engine.kind,
        "--threads",
        str(threads),
        "--photo",
        str(photo),
    ]
    if engine.model:
        arguments += ["--model", str(engine.model)]
    return WorkerSpec(engine.name, engine.python, tuple(arguments))
