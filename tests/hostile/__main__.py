"""`make hostile`: send a hundred thousand hostile requests to the real process, beside good ones.

    python -m tests.hostile --requests 100000 --seed 1

Starts its own server and sends to 127.0.0.1 only. Prints a table and a verdict. Exits with 1 if the contract is broken
anywhere: an unexpected answer, no answer, a crash, or a good request or probe that takes too long.
"""

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from tests.hostile import bodies, heads, requests, tensors
from tests.hostile.client import megabytes, send
from tests.hostile.pictures import ACCEPTED, BOUNDED, REFUSED
from tests.hostile.prober import probing, quantile
from tests.hostile.requests import (
    NO_ANSWER,
    Attack,
    Maker,
    bomb,
    head,
    matches_contract,
    oversized_chunked_body,
    post,
    tiny_writes,
)
from tests.hostile.unread_log import unread_log
from tests.server_process import ROOT, ServerProcess, running_server

KINDS = {**requests.KINDS, **heads.KINDS, **tensors.KINDS, **bodies.KINDS}
CONCURRENCY = 24
HANG_SECONDS = 30.0
GOOD_PAUSE_SECONDS = 0.1
GOOD_SECONDS = 5.0
PROBE_SECONDS = 0.5  # limit of the probes' p99
MAX_MEGABYTES = 700
# Kinds that are too expensive to be as frequent as the others: number of each in a run of 100,000.
RARE: dict[Maker, int] = {oversized_chunked_body: 100, tiny_writes: 200}
BOMB_ROUNDS = 3
# Requests to each server whose log nobody reads.
_UNREAD_REQUESTS = 2000


@dataclass
class Report:
    """The outcome of a run."""

    answers: dict[str, Counter[int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    good: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    seconds: float = 0.0
    peak_megabytes: float = 0.0
    idle_megabytes: float = 0.0

    @property
    def sent(self) -> int:
        return sum(counter.total() for counter in self.answers.values())

    def count(self, kind: str, status: int) -> None:
        self.answers.setdefault(kind, Counter())[status] += 1


def attacks(count: int, seed: int) -> Iterator[tuple[str, Attack]]:
    """Generate a run's requests; the same seed gives the same."""
    rng = random.Random(seed)
    share = count / 100_000
    rare = [maker for maker, times in RARE.items() for _ in range(max(1, round(times * share)))]
    bombs = list({**REFUSED, **ACCEPTED, **BOUNDED}) * max(1, round(BOMB_ROUNDS * share))
    special = dict.fromkeys(sorted(rng.sample(range(count), len(rare) + len(bombs))))
    queue: list[Maker | str] = [*rare, *bombs]
    rng.shuffle(queue)
    makers, weights = list(KINDS), list(KINDS.values())
    for number in range(count):
        if number in special:
            made = queue.pop()
            yield ("bombs: " + made, bomb(made)) if isinstance(made, str) else (made.__name__, made(rng))
        else:
            maker = rng.choices(makers, weights)[0]
            yield maker.__name__, maker(rng)


async def send_attacks(
    report: Report, source: Iterator[tuple[str, Attack]], model: bytes, host: str, port: int
) -> None:
    """Send requests from a shared source, one after another, and check the answers."""
    for kind, made in source:
        attack = replace(made, data=made.data.replace(tensors.SERVED, model, 1))
        name = "bombs" if kind.startswith("bombs") else kind
        try:
            async with asyncio.timeout(HANG_SECONDS):
                status, content_type, body = await send(attack, host, port)
        except TimeoutError:
            report.count(name, -1)
            report.wrong.append(f"{kind}: no answer within {HANG_SECONDS:g} s to {attack.data[:200]!r}")
            continue
        report.count(name, status)
        expected = status in attack.expected or (
            status == 429 and attack.data.startswith((b"POST /upload", b"POST /v2"))
        )
        silent = status == NO_ANSWER or attack.data.startswith(b"HEAD")
        if not expected or not (silent or matches_contract(status, content_type, body)):
            report.wrong.append(f"{kind}: {status} {body[:200]!r} to {attack.data[:300]!r}")


async def send_good_requests(report: Report, host: str, port: int, cat: bytes) -> None:
    """Send an ordinary image again and again; its answer must always be the same.

    While large files fill the budget for uploads it may be refused with 429. It is then sent again, as clients do, and
    `report.good` has the time until its answer.
    """
    request = Attack(post(cat), frozenset({200}))
    wanted = b""
    while True:
        started = time.perf_counter()
        async with asyncio.timeout(HANG_SECONDS):
            status, _, body = await send(request, host, port)
            while status == 429:
                await asyncio.sleep(GOOD_PAUSE_SECONDS)
                status, _, body = await send(request, host, port)
        report.good.append(time.perf_counter() - started)
        wanted = wanted or body
        if status != 200 or body != wanted:
            report.wrong.append(f"a good request: {status} {body[:200]!r}")
        await asyncio.sleep(GOOD_PAUSE_SECONDS)


async def run(server: ServerProcess, count: int, seed: int, report: Report) -> None:
    parts = urlsplit(server.url)
    assert parts.hostname
    assert parts.port
    at = (parts.hostname, parts.port)
    cat = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
    _, _, card = await send(Attack(head(b"GET", b"/model"), frozenset({200})), *at)
    model = json.loads(card)["name"].encode()
    good = asyncio.ensure_future(send_good_requests(report, *at, cat))
    source = attacks(count, seed)
    started = time.perf_counter()
    await asyncio.gather(*(send_attacks(report, source, model, *at) for _ in range(CONCURRENCY)))
    report.seconds = time.perf_counter() - started
    if good.done():
        report.wrong.append(f"good requests: {good.exception()!r}")
    good.cancel()


def hostile(count: int, seed: int, *flags: str) -> Report:
    """Run against a server started for it, which must survive the run and then exit with 0."""
    report = Report()
    for name in {**REFUSED, **ACCEPTED, **BOUNDED}:
        bomb(name)  # cached now, before anything is sent, because making it takes seconds
    with running_server(sys.executable, "--log-format", "json", *flags) as server:
        report.idle_megabytes = megabytes(server.process.pid, "VmRSS")
        parts = urlsplit(server.url)
        with probing(parts.hostname or "", parts.port or 0) as report.probes:
            asyncio.run(run(server, count, seed, report))
        if server.process.poll() is not None:
            report.wrong.append(f"the server has ended with {server.process.returncode}")
            return report
        report.peak_megabytes = megabytes(server.process.pid, "VmHWM")
        status = server.stop()
    if status != 0:
        report.wrong.append(f"the server exited with {status}")
    report.wrong += log_problems(server.lines) + exceeded_limits(report)
    return report


def exceeded_limits(report: Report) -> list[str]:
    """Messages about latency of good requests and probes, and memory, where they exceed their limits."""
    wrong = []
    if max(report.good, default=0.0) > GOOD_SECONDS:
        wrong.append(f"a good request took {max(report.good):.1f} s")
    if report.peak_megabytes > MAX_MEGABYTES:
        wrong.append(f"the server took {report.peak_megabytes:.0f} MB")
    if unanswered := report.probes.count(math.inf):
        wrong.append(f"probes had no answer, or another than 200, for the time of {unanswered} of them")
    if (p99 := quantile(report.probes, 0.99)) > PROBE_SECONDS:
        wrong.append(f"one of a hundred probes took {p99:.2f} s or more; the limit is {PROBE_SECONDS:g} s")
    return wrong


def log_problems(lines: list[str]) -> list[str]:
    """Messages about log lines that are not JSON objects or report a defect."""
    wrong = []
    for line in lines:
        try:
            parsed = json.loads(line)
            defect = parsed["level"] not in ("info", "warning")
        except (ValueError, TypeError, KeyError):
            defect = True
        if defect:
            wrong.append(f"log: {line[:500]}")
    return wrong


def table(report: Report) -> str:
    statuses = sorted({status for counter in report.answers.values() for status in counter})
    names = {NO_ANSWER: "left", -1: "hang"}
    lines = [f"{'kind':<32}" + "".join(f"{names.get(status, status):>7}" for status in statuses)]
    for kind, counter in sorted(report.answers.items()):
        lines.append(f"{kind:<32}" + "".join(f"{counter[status] or '':>7}" for status in statuses))
    total = sum((counter for counter in report.answers.values()), Counter[int]())
    lines.append(f"{'all':<32}" + "".join(f"{total[status]:>7}" for status in statuses))
    good = sorted(report.good)
    lines += [
        "",
        f"{report.sent} hostile requests in {report.seconds:.0f} s",
        f"5xx other than 503 and 504: {sum(total[status] for status in (500, 501, 502, 505))}",
        f"hangs: {total[-1]}",
        f"good requests meanwhile: {len(good)}, median {1000 * statistics.median(good):.0f} ms, "
        f"worst {1000 * good[-1]:.0f} ms",
        f"probes meanwhile: {len(report.probes)}, "
        + ", ".join(
            f"{name} {1000 * quantile(report.probes, share):.0f} ms"
            for name, share in (("median", 0.5), ("p99", 0.99), ("worst", 1.0))
        ),
        f"memory, MB: {report.idle_megabytes:.0f} before, {report.peak_megabytes:.0f} at its peak",
        f"failures: {len(report.wrong)}",
    ]
    return "\n".join(lines)


def verdict(report: Report) -> str:
    return f"hostile: failed, {len(report.wrong)} failures" if report.wrong else "hostile: passed"


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000, help="number of requests (default: 100000)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed sends the same requests (default: 1)")
    parser.add_argument("--model", default="auto", help="as for python -m serve")
    options = parser.parse_args()
    report = hostile(options.requests, options.seed, "--model", options.model)
    report.wrong += unread_log(_UNREAD_REQUESTS)
    print(table(report))
    for line in report.wrong[:50]:
        print(line)
    print(verdict(report))
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
