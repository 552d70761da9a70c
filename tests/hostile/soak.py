"""`make soak`: half an hour of everything at once, at one and a half times what the server can do.

    python -m tests.hostile.soak --minutes 30

Good, bad, huge, aborted and slow requests, each on a connection of its own, to a server of its own on 127.0.0.1. Ends
with a table in which every request is accounted for, and with status 1 where one is not, or where anything has grown.
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
from tests.hostile.overload import CAPACITY_SECONDS, CLIENTS, asking, closed_loop
from tests.hostile.requests import KINDS, NO_ANSWER, Attack, post
from tests.server_process import ROOT, ServerProcess, running_server

TIMES = 1.5
HANG_SECONDS = 40.0
MOST_AT_ONCE = 2000
SETTLED_MINUTES = 5.0
MOST_DRIFT = 0.05
LEAST_OFFERED = 0.95
REST_SECONDS = 6.0  # longer than it takes the server to give memory back, and to let go of connections
REFUSALS = (408, 429, 503, 504)


@dataclass(frozen=True)
class Sample:
    """The process at one moment. at: seconds since the start."""

    at: float
    megabytes: float
    files: int
    threads: int


@dataclass
class Record:
    """What became of the requests, by kind and outcome; the longest that one took; the process over time.

    planned: requests there should have been. rests: the process at rest, before the load and after it.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    planned: int = 0
    sent: int = 0
    worst_seconds: float = 0.0
    odd: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    rests: list[Sample] = field(default_factory=list)


class Mix:
    """Requests in the proportions of the run: seven good ones in ten."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        photos = ROOT / "tests" / "data" / "photos"
        self._photos = [path.read_bytes() for path in sorted(photos.iterdir())]
        buffer = io.BytesIO()
        with Image.open(photos / "coffee.jpg") as image:
            image.convert("RGB").resize((4000, 3000)).save(buffer, "JPEG", quality=90)
        self._huge = buffer.getvalue()
        self._makers, self._weights = list(KINDS), list(KINDS.values())

    def one_of_each(self) -> list[tuple[str, Attack]]:
        """What makes a server start all that it starts only where it is needed."""
        bad = [("bad", make(self._chance)) for make in self._makers]
        return [*bad, ("good", Attack(post(self._photos[0]), frozenset({200}))), ("huge", self._whole())]

    def _whole(self) -> Attack:
        return Attack(post(self._huge), frozenset({200}))

    def next(self) -> tuple[str, Attack]:
        photo = self._chance.choice(self._photos)
        match self._chance.random():
            case share if share < 0.70:
                return "good", Attack(post(photo), frozenset({200}))
            case share if share < 0.85:
                return "bad", self._chance.choices(self._makers, self._weights)[0](self._chance)
            case share if share < 0.88:
                return "huge", self._whole()
            case share if share < 0.90:
                return "too large", Attack(post(photo + bytes(21 << 20)), frozenset({413}))
            case share if share < 0.97:
                data = post(photo)
                return "aborted", Attack(data[: self._chance.randrange(len(data))], frozenset({NO_ANSWER}), leave=True)
            case _:
                # A third of these come too slowly for the server's patience.
                pause = self._chance.choice((0.5, 1.0, 9.0))
                return "slow", Attack(post(photo), frozenset({200, 408}), step=len(photo) // 4, pause=pause)


async def attend(record: Record, kind: str, attack: Attack, host: str, port: int) -> None:
    """Send one request and account for it."""
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
        record.odd.append(f"{kind}: no answer to {attack.data[:200]!r}")
        return
    except ConnectionError:
        status, body = NO_ANSWER, b""
    record.worst_seconds = max(record.worst_seconds, time.perf_counter() - started)
    if status in REFUSALS:
        record.outcomes[kind, "refused"] += 1
    elif status in attack.expected:
        record.outcomes[kind, "aborted by us" if status == NO_ANSWER else "answered"] += 1
    else:
        record.outcomes[kind, "lost" if status == NO_ANSWER else "wrong"] += 1
        record.odd.append(f"{kind}: {status} {body[:100]!r} to {attack.data[:200]!r}")


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
    """The whole run; returns once everything sent is accounted for, and the server has had a moment to rest."""
    parts = urlsplit(server.url)
    at = (parts.hostname or "", parts.port or 0)
    photo = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
    capacity = await closed_loop(asking(server, photo), CLIENTS, CAPACITY_SECONDS)
    rate = TIMES * capacity.rate
    mix = Mix(seed)
    for kind, attack in mix.one_of_each():
        await attend(Record(), kind, attack, *at)
    record = Record(planned=int(60 * minutes * rate))
    asked: set[asyncio.Task[None]] = set()
    await asyncio.sleep(REST_SECONDS)
    record.rests.append(sample(server, 0.0))
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < 60 * minutes:
        while record.sent < elapsed * rate and len(asked) < MOST_AT_ONCE:
            task = asyncio.ensure_future(attend(record, *mix.next(), *at))
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
    """The table, and whether the load was offered, all is accounted for and nothing has grown."""
    kinds = sorted({kind for kind, _ in record.outcomes})
    outcomes = ["answered", "refused", "aborted by us", "wrong", "lost", "hung"]
    lines = [f"{'kind':<12}" + "".join(f"{outcome:>15}" for outcome in outcomes)]
    lines += [f"{kind:<12}" + "".join(f"{record.outcomes[kind, each]:>15}" for each in outcomes) for kind in kinds]
    totals = {each: sum(record.outcomes[kind, each] for kind in kinds) for each in outcomes}
    lines.append(f"{'all':<12}" + "".join(f"{totals[each]:>15}" for each in outcomes))
    accounted = totals["answered"] + totals["refused"] + totals["aborted by us"]
    settled = min(SETTLED_MINUTES, minutes / 3) * 60

    def around(at: float) -> list[Sample]:
        return [each for each in record.samples if abs(each.at - at) <= 30]

    early, late = around(settled), around(60 * minutes - 30)
    first, last = (statistics.median(each.megabytes for each in part) for part in (early, late))
    drift = last / first - 1
    before, after = record.rests
    offered = record.sent / record.planned
    lines += [
        "",
        f"planned {record.planned}, sent {record.sent} ({offered:.1%}; at least {LEAST_OFFERED:.0%})",
        f"sent {record.sent} = answered + refused + aborted by us {accounted}",
        f"RSS, MB: {first:.0f} after {settled / 60:.1f} minutes, {last:.0f} at the end ({drift:+.1%}; at most +5.0%), "
        f"{max(each.megabytes for each in record.samples):.0f} at its peak",
        f"at rest, before and after: file descriptors {before.files} and {after.files}, "
        f"threads {before.threads} and {after.threads}",
        f"worst latency: {record.worst_seconds:.2f} s",
    ]
    kept = (
        offered >= LEAST_OFFERED
        and accounted == record.sent
        and drift <= MOST_DRIFT
        and after.files <= before.files
        and after.threads <= before.threads
    )
    return lines, kept


def main() -> int:
    """Run the command; the process's exit status."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.soak", description=description)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="auto", help="as the server's own flag")
    options = parser.parse_args()
    with running_server(sys.executable, "--log-format", "json", "--model", options.model) as server:
        record = asyncio.run(soak(server, options.minutes, options.seed))
        server.stop()
    lines, kept = judge(record, options.minutes)
    print("\n".join([*lines, *record.odd[:20], "" if kept else "NOT as it should be"]))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
