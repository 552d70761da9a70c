"""`make overload`: four times as many pictures as the server can do, for five minutes, and what became of each.

    python -m tests.hostile.overload --minutes 5 --times 4

Open loop: requests come when they come, each on a connection of its own, whatever became of those before. Sends to a
server of its own on 127.0.0.1. Ends with a table of what was promised, and with status 1 where that was not kept.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from tests.hostile.client import megabytes, send
from tests.hostile.requests import Attack, post
from tests.server_process import ROOT, ServerProcess, running_server

CLIENTS = 16
CAPACITY_SECONDS = 10.0
LONE_SECONDS = 1.0
DEADLINE_SECONDS = 10.0  # the server's own default
MOST_AT_ONCE = 4000


@dataclass
class Phase:
    """Answers of one kind of load: status and seconds of each, in the order in which they came."""

    answers: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    peak_megabytes: float = 0.0

    @property
    def right(self) -> list[float]:
        return sorted(seconds for status, seconds in self.answers if status == 200)

    @property
    def rate(self) -> float:
        return len(self.right) / self.seconds

    def quantile(self, share: float) -> float:
        return self.right[min(len(self.right) - 1, int(share * len(self.right)))]


Ask = Callable[[Phase], Awaitable[None]]


def asking(server: ServerProcess, data: bytes) -> Ask:
    """Sends the picture once and notes what came of it."""
    parts = urlsplit(server.url)
    request = Attack(post(data), frozenset({200}))

    async def ask(phase: Phase) -> None:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(2 * DEADLINE_SECONDS):
                status, _, _ = await send(request, parts.hostname or "", parts.port or 0)
        except TimeoutError:
            status = -1
        phase.answers.append((status, time.perf_counter() - started))

    return ask


async def closed_loop(ask: Ask, clients: int, seconds: float) -> Phase:
    """So many clients, each asking again as soon as it is answered."""
    phase = Phase()
    started = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - started < seconds:
            await ask(phase)

    await asyncio.gather(*(client() for _ in range(clients)))
    phase.seconds = time.perf_counter() - started
    return phase


async def open_loop(ask: Ask, server: ServerProcess, rate: float, seconds: float) -> Phase:
    """So many requests a second, evenly, whatever became of those before."""
    phase = Phase()
    asked: set[asyncio.Task[None]] = set()
    started = time.perf_counter()
    sent = 0
    while (elapsed := time.perf_counter() - started) < seconds:
        while sent < elapsed * rate and len(asked) < MOST_AT_ONCE:
            task = asyncio.ensure_future(ask(phase))
            asked.add(task)
            task.add_done_callback(asked.discard)
            sent += 1
        phase.peak_megabytes = max(phase.peak_megabytes, megabytes(server.process.pid, "VmRSS"))
        await asyncio.sleep(0.01)
    phase.seconds = time.perf_counter() - started
    await asyncio.gather(*asked)
    return phase


async def measure(server: ServerProcess, minutes: float, times: float) -> tuple[Phase, Phase, Phase, Phase]:
    """At capacity; alone, just before; overloaded; alone, just after."""
    ask = asking(server, (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes())
    await closed_loop(ask, CLIENTS, 2.0)
    capacity = await closed_loop(ask, CLIENTS, CAPACITY_SECONDS)
    before = await closed_loop(ask, 1, LONE_SECONDS)
    overloaded = await open_loop(ask, server, times * capacity.rate, 60 * minutes)
    after = await closed_loop(ask, 1, LONE_SECONDS)
    return capacity, before, overloaded, after


def judge(capacity: Phase, before: Phase, overloaded: Phase, after: Phase) -> list[tuple[str, str, bool]]:
    """What was promised, what came of it, and whether that is enough."""
    statuses = Counter(status for status, _ in overloaded.answers)
    p50, p99, last = statistics.median(capacity.right), overloaded.quantile(0.99), overloaded.right[-1]
    alone, again = statistics.median(before.right), statistics.median(after.right)
    odd = {status: count for status, count in statuses.items() if status not in (200, 429, 503, 504)}
    enough = overloaded.rate >= 0.9 * capacity.rate
    peak = overloaded.peak_megabytes
    return [
        ("no answer but 200, 429, 503, 504", str(dict(sorted(statuses.items()))), not odd),
        ("accepted ones meet their deadline", f"{last:.2f} s", last <= DEADLINE_SECONDS),
        ("p99 ≤ 3 × p50 at capacity", f"{p99:.3f} / {p50:.3f} s", p99 <= 3 * p50),
        ("goodput ≥ 0.9 of capacity", f"{overloaded.rate:.1f} / {capacity.rate:.1f} a second", enough),
        ("the first second after as before", f"{1000 * again:.1f} / {1000 * alone:.1f} ms", again <= 1.2 * alone),
        ("memory", f"{peak:.0f} MB at its peak", peak < 400),
    ]


def main() -> int:
    """Run the command; the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.hostile.overload", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--times", type=float, default=4.0, help="of the server's capacity, which is measured first")
    parser.add_argument("--model", default="auto", help="as the server's own flag")
    options, flags = parser.parse_known_args()
    with running_server(sys.executable, "--log-format", "json", "--model", options.model, *flags) as server:
        results = judge(*asyncio.run(measure(server, options.minutes, options.times)))
    for promise, found, kept in results:
        print(f"{promise:<36}{found:<44}{'kept' if kept else 'NOT KEPT'}")
    return 0 if all(kept for _, _, kept in results) else 1


if __name__ == "__main__":
    sys.exit(main())
