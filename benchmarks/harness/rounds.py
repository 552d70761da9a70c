"""Servers in turns: all are started, then in each round each is measured while the others are stopped by SIGSTOP.

So whatever disturbs the machine disturbs all alike, and ratios within a run hold where absolute times do not. A figure
is the median over the rounds, with the least and the greatest; a percentile that a round has too few answers for is
that of all rounds' answers together. Errors that leave here: `LoadFailed`.
"""

import contextlib
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.load import PERCENTILES, percentiles
from benchmarks.harness.machine import ROOT, quiet_environment
from benchmarks.harness.processes import CpuWatch
from benchmarks.harness.progress import Progress
from benchmarks.harness.servers import Contender, RunningServer, ServerFailed
from benchmarks.harness.workers import Worker, WorkerFailed, WorkerSpec

_LOAD: Final = Path(__file__).resolve().parent / "load.py"
_LEAD_IN: Final = 0.7  # expected seconds of a measurement beside the measuring itself
_FIGURES: Final = ("images_per_s", "beyond_ms", "load_cpu_share", "others_cpu_share")


class LoadFailed(Exception):
    """The load generator gave no figures."""


@dataclass(frozen=True)
class Photo:
    """What is sent. expect: ImageNet ids of the right answers, separated by commas."""

    file: Path
    expect: str


@dataclass(frozen=True)
class Step:
    """One kind of load. photo: a key of the run's photographs. seconds: how long it is measured in each round.

    rounds: in how many rounds; None for all. A queue of 64 before a slow server takes its time to fill and to empty.
    """

    photo: str
    clients: int
    seconds: float
    rounds: int | None = None

    @property
    def key(self) -> str:
        """How results name it: `16` for the photograph itself, `large 16` for another."""
        return str(self.clients) if self.photo == "photo" else f"{self.photo} {self.clients}"

    @property
    def weight(self) -> float:
        """Expected seconds of one measurement: many clients need a while until each has had its first answer."""
        return self.seconds + _LEAD_IN + 0.06 * self.clients


@dataclass(frozen=True)
class Plan:
    """What is done with all servers. starts: how often each is started for the time of its start.

    answers: how many each step has in all rounds together, at least: 100, of which a p99 can be told.
    """

    steps: tuple[Step, ...]
    rounds: int
    starts: int
    answers: int = 100

    def weight(self, contenders: Sequence[Contender]) -> float:
        """Expected seconds."""
        rounds = [step for number in range(self.rounds) for step in self.steps_of(number)]
        return sum(
            3.0 * self.starts + sum(step.weight for step in rounds if contender.is_sent(step.photo))
            for contender in contenders
        )

    def least(self, step: Step) -> int:
        """How many answers a step has in each of its rounds, at least."""
        return math.ceil(self.answers / min(self.rounds, step.rounds or self.rounds))

    def steps_of(self, number: int) -> list[Step]:
        """The steps of one round, counted from 0."""
        return [step for step in self.steps if number < (step.rounds or self.rounds)]


@dataclass
class Measured:
    """What has come together about one server. cells: figures of each round, by step."""

    contender: Contender
    start_seconds: list[float] = field(default_factory=list)
    idle_mb: dict[str, float] = field(default_factory=dict)
    loaded_mb: dict[str, float] = field(default_factory=dict)
    cells: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)

    def as_result(self) -> dict[str, Any]:
        """The same as JSON, with medians and spread."""
        return {
            "settings": self.contender.settings,
            **({"model": self.card} if self.card else {}),
            "start_s": spread(self.start_seconds),
            "idle_mb": self.idle_mb,
            "loaded_mb": self.loaded_mb,
            "clients": {key: summarise(cells) for key, cells in self.cells.items()},
        }


def measure_servers(
    contenders: Sequence[Contender],
    loop: WorkerSpec | None,
    photos: dict[str, Photo],
    plan: Plan,
    progress: Progress,
) -> tuple[dict[str, Any], list[str]]:
    """Results by server's name (the loop's among them), and what was left out and why."""
    photo = photos["photo"]
    with contextlib.ExitStack() as stack:
        servers, measured, left_out = _start(contenders, photo, plan, progress, stack)
        looping = None
        if loop:
            try:
                looping = Worker(loop)
                stack.callback(looping.stop)
                looping.check(photo.expect)
            except WorkerFailed as error:
                left_out.append(str(error))
                looping = None
        loop_cells: dict[str, list[dict[str, Any]]] = {}
        for number in range(plan.rounds):
            for step in plan.steps_of(number):
                # Another one begins each round, so that nobody always comes after the same neighbour.
                turn = number % max(1, len(servers))
                for server in servers[turn:] + servers[:turn]:
                    if not server.contender.is_sent(step.photo):
                        continue
                    name = server.contender.name
                    what = f"round {number + 1} of {plan.rounds}, {name}, {step.key} client{'s' * (step.clients > 1)}"
                    progress.step(what, step.weight)
                    cell = measure_once(server, photos[step.photo], step, plan.least(step))
                    measured[name].cells.setdefault(step.key, []).append(cell)
                if looping and step.clients > 1 and step.clients == _rate_clients(plan):
                    progress.step(f"round {number + 1} of {plan.rounds}, {loop.name if loop else ''}", step.seconds)
                    cell = looping.measure(photo=str(photos[step.photo].file), seconds=step.seconds)
                    loop_cells.setdefault(step.key, []).append(cell)
        for server in servers:
            measured[server.contender.name].loaded_mb = server.tree.memory_mb()
    results = {name: entry.as_result() for name, entry in measured.items()}
    if loop_cells and loop:
        results[loop.name] = {"clients": {key: summarise(cells) for key, cells in loop_cells.items()}}
    return results, left_out


def measure_once(server: RunningServer, photo: Photo, step: Step, least: int = 1) -> dict[str, Any]:
    """One round's figures of one server under one kind of load; it is paused afterwards."""
    command = [sys.executable, str(_LOAD), "--url", server.url, "--photo", str(photo.file), "--expect", photo.expect]
    command += ["--send", server.contender.send, "--clients", str(step.clients), "--seconds", str(step.seconds)]
    command += ["--least", str(least)]
    server.resume()
    try:
        watch = CpuWatch(server.tree)
        done = subprocess.run(command, cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, check=False)
        others = watch.others_share()
    finally:
        server.pause()
    try:
        cell: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise LoadFailed(f"{server.contender.name}, {step.key} clients: {done.stderr.strip()[-500:]}") from error
    return {**cell, "others_cpu_share": others}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least, greatest, and all of them in order."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "rounds": [round(value, 4) for value in values],
    }


def over_rounds(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Times and rates of all rounds.

    A percentile that some round has too few answers for is told once, of all their answers, or not at all.
    """
    together = percentiles([each for cell in cells for each in cell.get("ms", ())])
    figures: dict[str, Any] = {}
    for name in (*(f"p{percent}_ms" for percent in PERCENTILES), *_FIGURES):
        values = [cell[name] for cell in cells if cell.get(name) is not None]
        if name in together and len(values) < len(cells):
            values = [together[name]] if together[name] is not None else []
        if values:
            figures[name] = spread(values)
    return figures


def summarise(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rounds of one step → its figures; those that no round has are left out."""
    figures = over_rounds(cells)
    stages = [cell["stages_ms"] for cell in cells if cell.get("stages_ms")]
    if stages:
        figures["stages_ms"] = {name: spread([entry[name] for entry in stages if name in entry]) for name in stages[0]}
    ratios = [cell["p99_ms"] / cell["p50_ms"] for cell in cells if cell.get("p99_ms")]
    if ratios:
        figures["p99_to_p50"] = spread(ratios)
    for name in ("images", "errors", "wrong"):
        figures[name] = sum(cell.get(name, 0) for cell in cells)
    failures = {what: 0 for cell in cells for what in cell.get("failures", {})}
    for what in failures:
        failures[what] = sum(cell.get("failures", {}).get(what, 0) for cell in cells)
    return {**figures, **({"failures": failures} if failures else {})}


def _start(
    contenders: Sequence[Contender], photo: Photo, plan: Plan, progress: Progress, stack: contextlib.ExitStack
) -> tuple[list[RunningServer], dict[str, Measured], list[str]]:
    """Start each as often as planned, in turns; the last start of each stays, paused."""
    data = photo.file.read_bytes()
    measured = {contender.name: Measured(contender) for contender in contenders}
    servers: list[RunningServer] = []
    left_out: list[str] = []
    for number in range(plan.starts):
        for contender in _without(contenders, measured):
            progress.step(f"start {number + 1} of {plan.starts}, {contender.name}", 3.0)
            try:
                server = RunningServer(contender, data, photo.expect)
            except ServerFailed as error:
                left_out.append(str(error))
                del measured[contender.name]
                continue
            measured[contender.name].start_seconds.append(server.start_seconds)
            if number + 1 < plan.starts:
                server.stop()
                continue
            stack.callback(server.stop)
            measured[contender.name].idle_mb = server.tree.memory_mb()
            measured[contender.name].card = server.model_card()
            server.pause()
            servers.append(server)
    return servers, measured, left_out


def _without(contenders: Sequence[Contender], measured: dict[str, Measured]) -> Iterator[Contender]:
    return (contender for contender in contenders if contender.name in measured)


def _rate_clients(plan: Plan) -> int:
    """The number of clients at which rates are compared: 16, or the most there are where the plan has no 16."""
    counts = {step.clients for step in plan.steps}
    return 16 if 16 in counts else max(counts)
