"""Simulate how long images wait in many replicas, and how many are refused while load doubles.

    python benchmarks/queueing.py

A simulation for sizing, with the service time that `latency.py` measured: Poisson arrivals; replicas with two CPUs,
each of which works on one image at a time; a bounded queue in each. The balancer takes a random replica, or the less
busy of two random ones. The autoscaler follows Kubernetes' rule: every 15 s, replicas × utilisation ÷ target, at most
doubled. Prints two tables and writes queueing.json and queueing.svg to benchmarks/results. The same seed gives the same
figures.
"""

import heapq
import math
import random
import sys
from dataclasses import dataclass, field
from importlib import import_module
from typing import Final

if not __package__:  # started by its path
    import_module("harness.launch").start()

from benchmarks.harness.installed import OURS
from benchmarks.reporting.charts import Bar, bar_chart
from benchmarks.reporting.documents import read_result
from benchmarks.reporting.records import PrintedResult, add_output
from benchmarks.reporting.report import caveats
from serve.printable import ArgumentParser

# CPU seconds for each image, as measured with 16 clients.
_MEASURED: Final = read_result("latency")
SERVICE_SECONDS: Final = round(
    _MEASURED["machine"]["usable_cpus"] / _MEASURED["servers"][OURS]["clients"]["16"]["images_per_s"]["median"], 3
)
_SPREAD: Final = 0.15  # standard deviation of the logarithm of an image's service time
CPUS: Final = 2  # of a replica
QUEUE_LIMIT: Final = 64
PERIOD_SECONDS: Final = 15.0
SEED: Final = 7


@dataclass
class Replica:
    """A replica.

    Attributes:
        ready: When it starts to accept images.
        free: When each of its CPUs is free again.
    """

    ready: float = 0.0
    free: list[float] = field(default_factory=lambda: [0.0] * CPUS)

    def backlog(self, now: float) -> float:
        """Seconds of work left, summed over its CPUs."""
        return sum(max(0.0, at - now) for at in self.free)

    def enqueue(self, now: float, seconds: float) -> float | None:
        """Add an image that takes so many seconds; return its wait, or None if the queue is full."""
        wait = max(0.0, self.free[0] - now)
        if wait > QUEUE_LIMIT * SERVICE_SECONDS / CPUS:
            return None
        heapq.heapreplace(self.free, now + wait + seconds)
        return wait


@dataclass
class Outcome:
    """A simulation's outcome.

    Attributes:
        waits: Seconds that each answered image waited.
        replicas: At the end.
    """

    waits: list[float] = field(default_factory=list)
    refused: int = 0
    replicas: int = 0

    def wait(self, share: float) -> float:
        """A quantile of the waits, in seconds."""
        return sorted(self.waits)[int(share * (len(self.waits) - 1))]

    @property
    def refused_share(self) -> float:
        return self.refused / (self.refused + len(self.waits))


def simulate_steady_load(replicas: int, utilisation: float, least_busy: bool, images: int = 60_000) -> Outcome:
    """Simulate images that arrive at this share of what the replicas can do."""
    draw = random.Random(SEED)
    fleet = [Replica() for _ in range(replicas)]
    rate = replicas * CPUS / SERVICE_SECONDS * utilisation
    outcome, now = Outcome(replicas=replicas), 0.0
    for _ in range(images):
        now += draw.expovariate(rate)
        _serve(outcome, fleet, now, draw, least_busy)
    return outcome


def simulate_doubling_load(target: float, start_seconds: float, replicas: int = 10, minutes: float = 4.0) -> Outcome:
    """Simulate load that doubles within ten seconds, and an autoscaler that keeps utilisation at `target`.

    Args:
        start_seconds: From the autoscaler's decision to a replica that accepts images.
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
        busy += _serve(outcome, ready, now, draw, least_busy=True)
    outcome.replicas = len(fleet)
    return outcome


def _serve(outcome: Outcome, fleet: list[Replica], now: float, draw: random.Random, least_busy: bool) -> float:
    """Send one image to a replica; return its seconds of work. The less busy of two is nearly the least busy of all."""
    one, other = draw.choice(fleet), draw.choice(fleet)
    chosen = other if least_busy and other.backlog(now) < one.backlog(now) else one
    seconds = SERVICE_SECONDS * draw.lognormvariate(-(_SPREAD**2) / 2, _SPREAD)
    wait = chosen.enqueue(now, seconds)
    if wait is None:
        outcome.refused += 1
        return 0.0
    outcome.waits.append(wait)
    return seconds


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python benchmarks/queueing.py", description=(__doc__ or "").split("\n")[0])
    add_output(parser)
    printed = PrintedResult("queueing", parser, parser.parse_args())
    del printed.result["machine"]  # simulated: any machine gives the same figures
    printed.say("ms that an image waits in the queue, p50 / p99 (refused)")
    printed.say(f"{'utilisation':<13}{'1 replica':>20}{'20, any':>20}{'20, least busy':>20}")
    bars = []
    for percent in (50, 60, 70, 80, 90, 95):
        cells = []
        for replicas, least_busy in ((1, False), (20, False), (20, True)):
            outcome = simulate_steady_load(replicas, percent / 100, least_busy)
            p50, p99 = (1000 * outcome.wait(share) for share in (0.5, 0.99))
            cells.append(f"{p50:.0f} / {p99:.0f} ({outcome.refused_share:.1%})")
            if replicas > 1 and percent >= 60:
                label = f"{percent} %, {'least busy of two' if least_busy else 'any replica'}"
                bars.append(Bar(label, p99, p99, p99, "ours" if least_busy else ""))
        printed.say(f"{percent:>3} %{'':<8}" + "".join(f"{cell:>20}" for cell in cells))
    printed.say()
    printed.say("load doubles in ten seconds; refused, p99 of the wait in ms, replicas after 4 minutes, from 10")
    printed.say(f"{'target':<8}{'start in 5 s':>28}{'start in 60 s':>28}")
    for percent in (50, 60, 70, 80):
        cells = []
        for start in (5.0, 60.0):
            outcome = simulate_doubling_load(percent / 100, start)
            cells.append(f"{outcome.refused_share:.2%}, {1000 * outcome.wait(0.99):.0f}, {outcome.replicas}")
        printed.say(f"{percent:>3} %   " + "".join(f"{cell:>28}" for cell in cells))
    chart = bar_chart(
        "20 replicas of two CPUs: p99 of the wait, by utilisation and balancer",
        "ms",
        bars,
        "; ".join([f"Simulated: Poisson arrivals, {1000 * SERVICE_SECONDS:.0f} ms an image", *caveats(printed.result)]),
        note="ms that an image waits in the queue",
    )
    printed.write({"queueing.svg": chart}, service_seconds=SERVICE_SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
