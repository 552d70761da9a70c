"""Queueing on paper: how long pictures wait in many replicas, and what an autoscaler misses while load doubles.

    python benchmarks/queueing.py

A simulation with the service time that was measured, for sizing: Poisson arrivals; replicas of two CPUs, each of which
works on one picture; a bounded queue each. The balancer takes any replica, or one with the least to do. The autoscaler
is Kubernetes' own rule: every 15 s, replicas × utilisation ÷ target, at most doubled. Prints two tables and writes
queueing.json and queueing.svg to benchmarks/results. The same seed gives the same figures.
"""

import heapq
import math
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.documents import read
from benchmarks.harness.installed import OURS
from benchmarks.reporting.charts import Bar, bar_chart
from benchmarks.reporting.records import Printed, add_output
from benchmarks.reporting.report import reservations
from serve.printable import ArgumentParser

# What a picture takes of a CPU, as it was measured with 16 clients.
_MEASURED: Final = read("latency")
SERVICE_SECONDS: Final = round(
    _MEASURED["machine"]["usable_cpus"] / _MEASURED["servers"][OURS]["clients"]["16"]["images_per_s"]["median"], 3
)
_SPREAD: Final = 0.15  # of its logarithm: pictures differ
CPUS: Final = 2  # of a replica
QUEUE: Final = 64
PERIOD_SECONDS: Final = 15.0
SEED: Final = 7


@dataclass
class Replica:
    """When each of its CPUs is free again. ready: when it may be given pictures."""

    ready: float = 0.0
    free: list[float] = field(default_factory=lambda: [0.0] * CPUS)

    def backlog(self, now: float) -> float:
        """Seconds of work it has not done yet, of all its CPUs."""
        return sum(max(0.0, at - now) for at in self.free)

    def take(self, now: float, seconds: float) -> float | None:
        """The wait of a picture that takes so long; None where the queue is full."""
        wait = max(0.0, self.free[0] - now)
        if wait > QUEUE * SERVICE_SECONDS / CPUS:
            return None
        heapq.heapreplace(self.free, now + wait + seconds)
        return wait


@dataclass
class Outcome:
    """What became of the pictures. waits: seconds of those that were answered. replicas: at the end."""

    waits: list[float] = field(default_factory=list)
    refused: int = 0
    replicas: int = 0

    def wait(self, share: float) -> float:
        """The wait that so many of the answered stayed below, in seconds."""
        return sorted(self.waits)[int(share * (len(self.waits) - 1))]

    @property
    def refused_share(self) -> float:
        return self.refused / (self.refused + len(self.waits))


def steady(replicas: int, utilisation: float, least: bool, images: int = 60_000) -> Outcome:
    """Pictures that come evenly, at so much of what the replicas can do."""
    draw = random.Random(SEED)
    fleet = [Replica() for _ in range(replicas)]
    rate = replicas * CPUS / SERVICE_SECONDS * utilisation
    outcome, now = Outcome(replicas=replicas), 0.0
    for _ in range(images):
        now += draw.expovariate(rate)
        _serve(outcome, fleet, now, draw, least)
    return outcome


def doubling(target: float, start_seconds: float, replicas: int = 10, minutes: float = 4.0) -> Outcome:
    """Load that doubles within ten seconds, and an autoscaler that keeps utilisation at `target`.

    start_seconds: from its decision to a replica that answers.
    """
    draw = random.Random(SEED)
    fleet = [Replica() for _ in range(replicas)]
    before = replicas * CPUS / SERVICE_SECONDS * target
    outcome, now, busy, decision = Outcome(), 0.0, 0.0, PERIOD_SECONDS
    while now < minutes * 60:
        rate = before * (1 + min(1.0, max(0.0, (now - 30) / 10)))
        now += draw.expovariate(rate)
        while now > decision:
            working = [each for each in fleet if each.ready <= decision]
            utilisation = min(1.0, busy / (PERIOD_SECONDS * CPUS * len(working)))
            wanted = min(2 * len(working), math.ceil(len(working) * utilisation / target - 0.1))
            fleet += [Replica(decision + start_seconds) for _ in range(wanted - len(fleet))]
            busy, decision = 0.0, decision + PERIOD_SECONDS
        ready = [each for each in fleet if each.ready <= now]
        busy += _serve(outcome, ready, now, draw, least=True)
    outcome.replicas = len(fleet)
    return outcome


def _serve(outcome: Outcome, fleet: list[Replica], now: float, draw: random.Random, least: bool) -> float:
    """One picture; the seconds of work it brought. The least busy of two drawn is nearly the least busy of all."""
    one, other = draw.choice(fleet), draw.choice(fleet)
    chosen = other if least and other.backlog(now) < one.backlog(now) else one
    seconds = SERVICE_SECONDS * draw.lognormvariate(-(_SPREAD**2) / 2, _SPREAD)
    wait = chosen.take(now, seconds)
    if wait is None:
        outcome.refused += 1
        return 0.0
    outcome.waits.append(wait)
    return seconds


def main() -> int:
    """Print the tables and draw the chart; the process's exit status."""
    parser = ArgumentParser(prog="python benchmarks/queueing.py", description=(__doc__ or "").split("\n")[0])
    add_output(parser)
    printed = Printed("queueing", parser, parser.parse_args())
    del printed.result["machine"]  # simulated: any machine gives the same figures
    printed.say("ms that a picture waits before it is worked on, p50 / p99 (refused)")
    printed.say(f"{'utilisation':<13}{'1 replica':>20}{'20, any':>20}{'20, least busy':>20}")
    bars = []
    for percent in (50, 60, 70, 80, 90, 95):
        cells = []
        for replicas, least in ((1, False), (20, False), (20, True)):
            outcome = steady(replicas, percent / 100, least)
            p50, p99 = (1000 * outcome.wait(share) for share in (0.5, 0.99))
            cells.append(f"{p50:.0f} / {p99:.0f} ({outcome.refused_share:.1%})")
            if replicas > 1 and percent >= 60:
                label = f"{percent} %, {'least busy of two' if least else 'any replica'}"
                bars.append(Bar(label, p99, p99, p99, "ours" if least else ""))
        printed.say(f"{percent:>3} %{'':<8}" + "".join(f"{cell:>20}" for cell in cells))
    printed.say()
    printed.say("load doubles in ten seconds; refused, p99 of the wait in ms, replicas after 4 minutes, from 10")
    printed.say(f"{'target':<8}{'start in 5 s':>28}{'start in 60 s':>28}")
    for percent in (50, 60, 70, 80):
        cells = []
        for start in (5.0, 60.0):
            outcome = doubling(percent / 100, start)
            cells.append(f"{outcome.refused_share:.2%}, {1000 * outcome.wait(0.99):.0f}, {outcome.replicas}")
        printed.say(f"{percent:>3} %   " + "".join(f"{cell:>28}" for cell in cells))
    chart = bar_chart(
        "20 replicas of two CPUs: p99 of the wait, by utilisation and balancer",
        "ms",
        bars,
        "; ".join(
            [f"Simulated: Poisson arrivals, {1000 * SERVICE_SECONDS:.0f} ms a picture", *reservations(printed.result)]
        ),
        note="ms before a picture is worked on",
    )
    printed.write({"queueing.svg": chart}, service_seconds=SERVICE_SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
