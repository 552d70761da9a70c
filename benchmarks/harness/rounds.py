"""Measures servers in turn: each is started, measured alone with one photograph's workloads, and stopped.

Ratios within a round therefore hold even if the machine's speed changes from hour to hour. No other server runs
meanwhile, not even a paused one: a server's speed depends on which physical memory it gets, and that depends on what
other processes hold. Mosec's p50 was 0.99 of ours when it was started after sixteen others, and 1.12 after three.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.errors import LoadFailed, ServerFailed, WorkerFailed
from benchmarks.harness.figures import spread, summarize
from benchmarks.harness.machine import ROOT, child_environment
from benchmarks.harness.processes import CpuWatch
from benchmarks.harness.progress import Progress
from benchmarks.harness.servers import RunningServer, ServerSpec
from benchmarks.harness.workers import Worker, WorkerSpec
from benchmarks.harness.workloads import START_SECONDS, Photo, Plan, Workload


@dataclass
class ServerMeasurements:
    """What has been measured of one server.

    Attributes:
        idle_mb: After the last start.
        loaded_mb: The most there was after all workloads of a photograph.
        by_workload: One entry for each round.
        card: The model it serves.
    """

    spec: ServerSpec
    start_seconds: list[float] = field(default_factory=list)
    idle_mb: dict[str, float] = field(default_factory=dict)
    loaded_mb: dict[str, float] = field(default_factory=dict)
    by_workload: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)

    def as_result(self) -> dict[str, Any]:
        """The server's entry in a result, with medians and spreads."""
        return {
            "settings": self.spec.settings,
            **({"model": self.card} if self.card else {}),
            "start_s": spread(self.start_seconds),
            "idle_mb": self.idle_mb,
            "loaded_mb": self.loaded_mb,
            "clients": {key: summarize(measurements) for key, measurements in self.by_workload.items()},
        }


def measure_servers(
    specs: Sequence[ServerSpec],
    loop: WorkerSpec | None,
    photos: dict[str, Photo],
    plan: Plan,
    progress: Progress,
) -> tuple[dict[str, Any], list[str]]:
    """Measure the servers and the loop without HTTP.

    Returns:
        Figures by server (and the loop), and a line for each that was left out, with the reason.

    Raises:
        LoadFailed: The load generator failed.
    """
    measured = {spec.name: ServerMeasurements(spec) for spec in specs}
    in_turn: list[ServerSpec | WorkerSpec] = [*specs, *([loop] if loop else [])]
    loop_measurements: dict[str, list[dict[str, Any]]] = {}
    left_out: list[str] = []
    turns = _Turns(plan, photos, progress)
    for number, photo in ((number, photo) for number in range(plan.rounds) for photo in photos):
        for spec in _order(in_turn, number):
            try:
                if isinstance(spec, ServerSpec):
                    turns.measure_server(measured[spec.name], number, photo)
                else:
                    turns.measure_loop(spec, loop_measurements, number, photo)
            except (ServerFailed, WorkerFailed) as error:
                left_out.append(str(error))
                in_turn.remove(spec)
                measured.pop(spec.name, None)
    results = {name: entry.as_result() for name, entry in measured.items()}
    if loop in in_turn and loop_measurements:
        results[loop.name] = {"clients": {key: summarize(rounds) for key, rounds in loop_measurements.items()}}
    return results, left_out


def measure_once(server: RunningServer, photo: Photo, workload: Workload, min_answers: int = 1) -> dict[str, Any]:
    """Measure one round of one workload.

    Raises:
        LoadFailed: The load generator failed.
    """
    command = [sys.executable, "-m", "benchmarks.harness.load", "--url", server.url, "--photo", str(photo.file)]
    command += ["--expect", photo.expect, "--send", server.spec.send, "--min-answers", str(min_answers)]
    command += ["--clients", str(workload.clients), "--seconds", str(workload.seconds)]
    watch = CpuWatch(server.tree)
    done = subprocess.run(command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, check=False)
    others = watch.others_share()
    try:
        measurement: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise LoadFailed(f"{server.spec.name}, {workload.key} clients: {done.stderr.strip()[-500:]}") from error
    return {**measurement, "others_cpu_share": others}


@dataclass(frozen=True)
class _Turns:
    """Measures one server, or the loop, with one photograph in one round; rounds are counted from 0."""

    plan: Plan
    photos: dict[str, Photo]
    progress: Progress

    def measure_server(self, entry: ServerMeasurements, number: int, photo: str) -> None:
        """Start a server, measure it with this round's workloads of the photograph if it is sent it, and stop it."""
        spec = entry.spec
        workloads = self.plan.workloads_of(number, photo)
        if not workloads or not spec.is_sent(photo):
            return
        self._step(number, f"{spec.name}, start", START_SECONDS)
        server = _start(spec, self.photos["photo"])
        try:
            entry.start_seconds.append(server.start_seconds)
            entry.idle_mb = server.tree.memory_mb()
            entry.card = server.model_card()
            for workload in workloads:
                clients = f"{workload.key} client{'s' * (workload.clients > 1)}"
                self._step(number, f"{spec.name}, {clients}", workload.expected_seconds)
                measurement = measure_once(server, self.photos[photo], workload, self.plan.min_answers(workload))
                entry.by_workload.setdefault(workload.key, []).append(measurement)
            entry.loaded_mb = max(entry.loaded_mb, server.tree.memory_mb(), key=lambda memory: memory.get("pss", 0.0))
        finally:
            server.stop()

    def measure_loop(
        self, spec: WorkerSpec, measured: dict[str, list[dict[str, Any]]], number: int, photo: str
    ) -> None:
        """Start the loop, measure it with those of this round's workloads that compare rates, and stop it."""
        compared = _rate_workloads(self.plan.workloads)
        workloads = [workload for workload in self.plan.workloads_of(number, photo) if workload in compared]
        if not workloads:
            return
        self._step(number, f"{spec.name}, start", START_SECONDS)
        worker = Worker(spec)
        try:
            worker.check(self.photos["photo"].expect)
            for workload in workloads:
                self._step(number, spec.name, workload.seconds)
                measurement = worker.measure(photo=str(self.photos[photo].file), seconds=workload.seconds)
                measured.setdefault(workload.key, []).append(measurement)
        finally:
            worker.stop()

    def _step(self, number: int, what: str, expected_seconds: float) -> None:
        self.progress.step(f"round {number + 1} of {self.plan.rounds}, {what}", expected_seconds)


def _order(specs: Sequence[Any], number: int) -> list[Any]:
    """The order in a round: rotated, so that none is always the first, and in odd rounds reversed.

    Two servers next to each other are measured soon after one another in either order; so are the first and the last.
    """
    first = number % max(1, len(specs))
    return [*specs[first:], *specs[:first]][:: -1 if number % 2 else 1]


def _start(spec: ServerSpec, photo: Photo) -> RunningServer:
    """Start a server, and once more if that fails, because a port that was free may have been taken since."""
    data = photo.file.read_bytes()
    try:
        return RunningServer(spec, data, photo.expect)
    except ServerFailed:
        return RunningServer(spec, data, photo.expect)


def _rate_workloads(workloads: Sequence[Workload]) -> list[Workload]:
    """The workloads at which rates are compared: with 16 clients, or the most there are; none if that is one."""
    counts = {workload.clients for workload in workloads}
    clients = 16 if 16 in counts else max(counts)
    return [workload for workload in workloads if workload.clients == clients > 1]
