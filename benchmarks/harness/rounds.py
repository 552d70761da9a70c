"""Measures servers in turns: all are started, then in each round each is measured while SIGSTOP pauses the others.

Noise on the machine therefore affects all alike, and ratios within a run hold where absolute times do not. A server's
speed also depends on where in memory it comes to lie, by up to 5 % from start to start; so rounds begin with new ones.
"""

import contextlib
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
    """Start and measure the servers, and the loop without HTTP beside them.

    Returns:
        Figures by server (and the loop), and a line for each that was left out, with the reason.

    Raises:
        LoadFailed: The load generator failed.
    """
    photo = photos["photo"]
    measured = {spec.name: ServerMeasurements(spec) for spec in specs}
    left_out: list[str] = []
    loop_measurements: dict[str, list[dict[str, Any]]] = {}
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(contextlib.ExitStack())
        servers: list[RunningServer] = []
        worker = None
        if loop:
            try:
                worker = Worker(loop)
                stack.callback(worker.stop)
                worker.check(photo.expect)
            except WorkerFailed as error:
                left_out.append(str(error))
                worker = None
        for number in range(plan.rounds):
            title = f"round {number + 1} of {plan.rounds}"
            if number < plan.starts:
                running.close()
                servers = _start(measured, photo, title, progress, running, left_out)
            for workload in plan.workloads_of(number):
                # The order rotates, so that no server is always the first.
                first = number % max(1, len(servers))
                for server in servers[first:] + servers[:first]:
                    if not server.spec.is_sent(workload.photo):
                        continue
                    name = server.spec.name
                    clients = f"{workload.key} client{'s' * (workload.clients > 1)}"
                    progress.step(f"{title}, {name}, {clients}", workload.expected_seconds)
                    measurement = measure_once(server, photos[workload.photo], workload, plan.min_answers(workload))
                    measured[name].by_workload.setdefault(workload.key, []).append(measurement)
                if worker and workload.clients > 1 and workload.clients == _rate_clients(plan):
                    progress.step(f"{title}, {worker.spec.name}", workload.seconds)
                    measurement = worker.measure(photo=str(photos[workload.photo].file), seconds=workload.seconds)
                    loop_measurements.setdefault(workload.key, []).append(measurement)
        for server in servers:
            measured[server.spec.name].loaded_mb = server.tree.memory_mb()
    results = {name: entry.as_result() for name, entry in measured.items()}
    if loop_measurements and loop:
        results[loop.name] = {"clients": {key: summarize(rounds) for key, rounds in loop_measurements.items()}}
    return results, left_out


def measure_once(server: RunningServer, photo: Photo, workload: Workload, min_answers: int = 1) -> dict[str, Any]:
    """Resume a server, measure one round of one workload, and pause the server.

    Raises:
        LoadFailed: The load generator failed.
    """
    command = [sys.executable, "-m", "benchmarks.harness.load", "--url", server.url, "--photo", str(photo.file)]
    command += ["--expect", photo.expect, "--send", server.spec.send, "--min-answers", str(min_answers)]
    command += ["--clients", str(workload.clients), "--seconds", str(workload.seconds)]
    server.resume()
    try:
        watch = CpuWatch(server.tree)
        done = subprocess.run(command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, check=False)
        others = watch.others_share()
    finally:
        server.pause()
    try:
        measurement: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise LoadFailed(f"{server.spec.name}, {workload.key} clients: {done.stderr.strip()[-500:]}") from error
    return {**measurement, "others_cpu_share": others}


def _start(
    measured: dict[str, ServerMeasurements],
    photo: Photo,
    title: str,
    progress: Progress,
    stack: contextlib.ExitStack,
    left_out: list[str],
) -> list[RunningServer]:
    """Start the servers that are measured, paused; one that fails twice is left out, with what was measured of it."""
    data = photo.file.read_bytes()
    servers: list[RunningServer] = []
    for entry in list(measured.values()):
        progress.step(f"{title}, {entry.spec.name}, start", START_SECONDS)
        try:
            server = _start_one(entry.spec, data, photo.expect)
        except ServerFailed as error:
            left_out.append(str(error))
            del measured[entry.spec.name]
            continue
        stack.callback(server.stop)
        entry.start_seconds.append(server.start_seconds)
        entry.idle_mb = server.tree.memory_mb()
        entry.card = server.model_card()
        server.pause()
        servers.append(server)
    return servers


def _start_one(spec: ServerSpec, photo: bytes, expect: str) -> RunningServer:
    """Start a server, and once more if that fails, because a port that was free may have been taken since."""
    try:
        return RunningServer(spec, photo, expect)
    except ServerFailed:
        return RunningServer(spec, photo, expect)


def _rate_clients(plan: Plan) -> int:
    """The number of clients at which rates are compared: 16, or the largest if the plan has no 16."""
    counts = {workload.clients for workload in plan.workloads}
    return 16 if 16 in counts else max(counts)
