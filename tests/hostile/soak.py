"""`make soak`: half an hour of mixed requests, at one and a half times the server's capacity.

    python -m tests.hostile.soak --minutes 30

Sends good, bad, huge, aborted and slow requests, each on a new connection, to a server it starts on 127.0.0.1. Prints a
table that accounts for every request. Exits with 1 if one is missing, or if memory, open files or threads have grown.
"""

import argparse
import asyncio
import io
import os
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from PIL import Image

from tests.hostile.client import megabytes, send
from tests.hostile.overload import CAPACITY_SECONDS, CLIENTS, closed_loop, request_sender
from tests.hostile.requests import KINDS, NO_ANSWER, Attack, post
from tests.server_process import ROOT, ServerProcess, running_server

OVERLOAD = 1.5
HANG_SECONDS = 40.0
MAX_CONNECTIONS = 2000
WARM_UP_MINUTES = 5.0
MAX_GROWTH = 0.05
MIN_OFFERED = 0.95
REST_SECONDS = 6.0  # longer than the server needs to return memory and to close connections
REFUSED_STATUSES = (408, 429, 503, 504)


@dataclass(frozen=True)
class Sample:
    """The process at one moment. at: seconds since the start of the run."""

    at: float
    megabytes: float
    files: int
    threads: int


@dataclass
class Record:
    """The outcome of a run.

    Attributes:
        outcomes: Numbers of requests by kind and outcome.
        planned: Requests that should have been sent.
        samples: The process under load.
        rests: The idle process before and after the load.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    planned: int = 0
    sent: int = 0
    worst_seconds: float = 0.0
    unexpected: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    rests: list[Sample] = field(default_factory=list)


class Mix:
    """Draws requests of all kinds; seven in ten are good."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        photos = ROOT / "tests" / "data" / "photos"
        self._photos = [path.read_bytes() for path in sorted(photos.iterdir())]
        buffer = io.BytesIO()
        with Image.open(photos / "coffee.jpg") as image:
            image.convert("RGB").resize((4000, 3000)).save(buffer, "JPEG", quality=90)
        self._huge = buffer.getvalue()
        self._makers, self._weights = list(KINDS), list(KINDS.values())

    def one_of_each(self) -> list[tuple[str, Attack]]:
        """One request of each kind, so that the server has started everything that it starts lazily."""
        bad = [("bad", make(self._rng)) for make in self._makers]
        return [*bad, ("good", Attack(post(self._photos[0]), frozenset({200}))), ("huge", self._whole())]

    def _whole(self) -> Attack:
        return Attack(post(self._huge), frozenset({200}))

    def next(self) -> tuple[str, Attack]:
        photo = self._rng.choice(self._photos)
        match self._rng.random():
            case share if share < 0.70:
                return "good", Attack(post(photo), frozenset({200}))
            case share if share < 0.85:
                return "bad", self._rng.choices(self._makers, self._weights)[0](self._rng)
            case share if share < 0.88:
                return "huge", self._whole()
            case share if share < 0.90:
                return "too large", Attack(post(photo + bytes(21 << 20)), frozenset({413}))
            case share if share < 0.97:
                data = post(photo)
                return "aborted", Attack(data[: self._rng.randrange(len(data))], frozenset({NO_ANSWER}), leave=True)
            case _:
                # A third of these are too slow for the server's timeout.
                pause = self._rng.choice((0.5, 1.0, 9.0))
                return "slow", Attack(post(photo), frozenset({200, 408}), step=len(photo) // 4, pause=pause)


async def send_and_record(record: Record, kind: str, attack: Attack, host: str, port: int) -> None:
    """Send one request and record its outcome."""
    started = time.perf_counter()
    try:
        async with asyncio.timeout(HANG_SECONDS):
            if kind == "aborted":
                await abort(attack, host, port)
                record.outcomes[kind, "aborted by us"] += 1
                return
            status, _, body = await send(attack, host, port)
    except TimeoutError:
        record.outcomes[kind, "hung"] += 1
        record.unexpected.append(f"{kind}: no answer to {attack.data[:200]!r}")
        return
    except ConnectionError:
        status, body = NO_ANSWER, b""
    record.worst_seconds = max(record.worst_seconds, time.perf_counter() - started)
    if status in REFUSED_STATUSES:
        record.outcomes[kind, "refused"] += 1
    elif status in attack.expected:
        record.outcomes[kind, "aborted by us" if status == NO_ANSWER else "answered"] += 1
    else:
        record.outcomes[kind, "lost" if status == NO_ANSWER else "wrong"] += 1
        record.unexpected.append(f"{kind}: {status} {body[:100]!r} to {attack.data[:200]!r}")


async def abort(attack: Attack, host: str, port: int) -> None:
    _, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(attack.data)
        await writer.drain()
    finally:
        writer.transport.abort()


def sample(server: ServerProcess, at: float) -> Sample:
    process = Path(f"/proc/{server.process.pid}")
    return Sample(
        at,
        megabytes(server.process.pid, "VmRSS"),
        len(list((process / "fd").iterdir())),
        len(list((process / "task").iterdir())),
    )


async def soak(server: ServerProcess, minutes: float, seed: int) -> Record:
    """Run the test; return once every request has an outcome and the server has been idle for a moment."""
    parts = urlsplit(server.url)
    at = (parts.hostname or "", parts.port or 0)
    photo = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
    capacity = await closed_loop(request_sender(server, photo), CLIENTS, CAPACITY_SECONDS)
    rate = OVERLOAD * capacity.rate
    mix = Mix(seed)
    for kind, attack in mix.one_of_each():
        await send_and_record(Record(), kind, attack, *at)
    record = Record(planned=int(60 * minutes * rate))
    asked: set[asyncio.Task[None]] = set()
    await asyncio.sleep(REST_SECONDS)
    record.rests.append(sample(server, 0.0))
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < 60 * minutes:
        while record.sent < elapsed * rate and len(asked) < MAX_CONNECTIONS:
            task = asyncio.ensure_future(send_and_record(record, *mix.next(), *at))
            asked.add(task)
            task.add_done_callback(asked.discard)
            record.sent += 1
        if not record.samples or elapsed - record.samples[-1].at >= 1:
            record.samples.append(sample(server, elapsed))
            if sys.stderr.isatty():
                print(f"\r{elapsed / 60:.1f} of {minutes:g} minutes", end="", file=sys.stderr, flush=True)
        await asyncio.sleep(0.01)
    await asyncio.gather(*asked)
    await asyncio.sleep(REST_SECONDS)
    record.rests.append(sample(server, time.perf_counter() - started))
    return record


def judge(record: Record, minutes: float) -> tuple[list[str], bool]:
    """Returns the table, and whether the load was sent, all requests are accounted for and nothing has grown."""
    kinds = sorted({kind for kind, _ in record.outcomes})
    outcomes = ["answered", "refused", "aborted by us", "wrong", "lost", "hung"]
    lines = [f"{'kind':<12}" + "".join(f"{outcome:>15}" for outcome in outcomes)]
    lines += [f"{kind:<12}" + "".join(f"{record.outcomes[kind, each]:>15}" for each in outcomes) for kind in kinds]
    totals = {each: sum(record.outcomes[kind, each] for kind in kinds) for each in outcomes}
    lines.append(f"{'all':<12}" + "".join(f"{totals[each]:>15}" for each in outcomes))
    accounted = totals["answered"] + totals["refused"] + totals["aborted by us"]
    settled = min(WARM_UP_MINUTES, minutes / 3) * 60

    def around(at: float) -> list[Sample]:
        return [each for each in record.samples if abs(each.at - at) <= 30]

    early, late = around(settled), around(60 * minutes - 30)
    first, last = (statistics.median(each.megabytes for each in part) for part in (early, late))
    drift = last / first - 1
    before, after = record.rests
    offered = record.sent / record.planned
    lines += [
        "",
        f"planned {record.planned}, sent {record.sent} ({offered:.1%}; at least {MIN_OFFERED:.0%})",
        f"sent {record.sent} = answered + refused + aborted by us {accounted}",
        f"RSS, MB: {first:.0f} after {settled / 60:.1f} minutes, {last:.0f} at the end ({drift:+.1%}; at most +5.0%), "
        f"{max(each.megabytes for each in record.samples):.0f} at its peak",
        f"at rest, before and after: file descriptors {before.files} and {after.files}, "
        f"threads {before.threads} and {after.threads}",
        f"worst latency: {record.worst_seconds:.2f} s",
    ]
    kept = (
        offered >= MIN_OFFERED
        and accounted == record.sent
        and drift <= MAX_GROWTH
        and after.files <= before.files
        and after.threads <= before.threads
    )
    return lines, kept


def main() -> int:
    """Run the command and return its exit status."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.soak", description=description)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="auto", help="as for python -m serve")
    options = parser.parse_args()
    with running_server(sys.executable, "--log-format", "json", "--model", options.model) as server:
        record = asyncio.run(soak(server, options.minutes, options.seed))
        server.stop()
    lines, kept = judge(record, options.minutes)
    print("\n".join([*lines, *record.unexpected[:20], "" if kept else "soak: failed"]))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
