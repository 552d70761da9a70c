"""`make overload`: send four times as many images as the server can classify, for five minutes.

    python -m tests.hostile.overload --minutes 5 --times 4

An open loop: requests are sent at a constant rate, whatever happened to those before, each on an idle connection.
Starts its own server on 127.0.0.1. Prints a table of promises and exits with 1 if one was not kept.
"""

import argparse
import asyncio
import contextlib
import os
import re
import selectors
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from tests.hostile.client import megabytes, send
from tests.hostile.requests import NO_ANSWER, Attack, post
from tests.server_process import ROOT, ServerProcess, running_server

CLIENTS = 16
CAPACITY_SECONDS = 10.0
SINGLE_CLIENT_SECONDS = 1.0
DEADLINE_SECONDS = 10.0  # the server's own default
MIN_OFFERED = 0.95
MAX_CONNECTIONS = 900  # below the server's limit, which is not tested here
HANG = -1
IDLE_SECONDS = 30.0  # below the server's keep-alive timeout


@dataclass
class Phase:
    """The answers to one kind of load.

    Attributes:
        answers: Status and seconds of each, in order of arrival.
        planned, sent: Of an open loop: requests that should have been sent, and that were.
    """

    answers: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    peak_megabytes: float = 0.0
    planned: int = 0
    sent: int = 0

    def combined_with(self, other: "Phase") -> "Phase":
        """Both phases as one."""
        peak = max(self.peak_megabytes, other.peak_megabytes)
        return Phase(self.answers + other.answers, self.seconds + other.seconds, peak)

    @property
    def successes(self) -> list[float]:
        return sorted(seconds for status, seconds in self.answers if status == 200)

    @property
    def rate(self) -> float:
        return len(self.successes) / self.seconds

    def quantile(self, share: float) -> float:
        return self.successes[min(len(self.successes) - 1, int(share * len(self.successes)))]


Ask = Callable[[Phase], Awaitable[None]]


def request_sender(server: ServerProcess, data: bytes) -> Ask:
    """Make a function that sends the image once and records the answer."""
    parts = urlsplit(server.url)
    request = Attack(post(data), frozenset({200}))

    async def ask(phase: Phase) -> None:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(2 * DEADLINE_SECONDS):
                status, _, _ = await send(request, parts.hostname or "", parts.port or 0)
        except TimeoutError:
            status = HANG
        phase.answers.append((status, time.perf_counter() - started))

    return ask


async def closed_loop(ask: Ask, clients: int, seconds: float) -> Phase:
    """Run so many clients, each sending again as soon as it has its answer."""
    phase = Phase()
    started = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - started < seconds:
            await ask(phase)

    await asyncio.gather(*(client() for _ in range(clients)))
    phase.seconds = time.perf_counter() - started
    return phase


class Connection:
    """A keep-alive connection that sends a request and reads its answer.

    A state machine over a bare socket, because asyncio's streams used more CPU than the server's refusals.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.started = 0.0
        self.to_send = memoryview(b"")
        self.received = b""
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(address)

    def ask(self, data: bytes) -> None:
        self.started = time.perf_counter()
        self.to_send = memoryview(data)
        self.received = b""

    def send(self) -> None:
        """Send as much as possible; `read` detects a closed connection."""
        with contextlib.suppress(BlockingIOError):
            try:
                self.to_send = self.to_send[self.socket.send(self.to_send) :]
            except (BrokenPipeError, ConnectionError):
                self.to_send = memoryview(b"")

    def read(self) -> int | None:
        """The answer's status once it is complete, `NO_ANSWER` if the connection ends before; else None."""
        try:
            more = self.socket.recv(65536)
        except OSError:
            more = b""
        self.received += more
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if end and length and len(body) >= int(length[1]):
            return int(head.split(b" ", 2)[1])
        return None if more else NO_ANSWER

    @property
    def reusable(self) -> bool:
        return not self.to_send and self.received.startswith(b"HTTP") and b"\r\nconnection: close" not in self.received


def open_loop(server: ServerProcess, data: bytes, rate: float, seconds: float) -> Phase:
    """Send requests at a constant rate, whatever happened to those before."""
    parts = urlsplit(server.url)
    address, request = (parts.hostname or "", parts.port or 0), post(data)
    phase, sent = Phase(planned=int(rate * seconds)), 0
    idle: list[Connection] = []
    asking: set[Connection] = set()
    started = sampled = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        while (elapsed := time.perf_counter() - started) < seconds or asking:
            while elapsed < seconds and sent < elapsed * rate and len(asking) < MAX_CONNECTIONS:
                while idle and time.perf_counter() - idle[0].started > IDLE_SECONDS:
                    idle.pop(0).socket.close()
                connection = idle.pop() if idle else Connection(address)
                connection.ask(request)
                asking.add(connection)
                selector.register(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
                sent += 1
            for key, _ in selector.select(max(0.0, sent / rate - elapsed) if elapsed < seconds else 1.0):
                connection = key.data
                if connection.to_send:
                    connection.send()
                    if not connection.to_send:
                        selector.modify(connection.socket, selectors.EVENT_READ, connection)
                elif (status := connection.read()) is not None:
                    phase.answers.append((status, time.perf_counter() - connection.started))
                    selector.unregister(connection.socket)
                    asking.discard(connection)
                    if connection.reusable:
                        idle.append(connection)
                    else:
                        connection.socket.close()
            if elapsed > seconds + 2 * DEADLINE_SECONDS:  # the rest hangs
                phase.answers += [(HANG, 2 * DEADLINE_SECONDS)] * len(asking)
                break
            if time.perf_counter() - sampled > 0.1:
                sampled = time.perf_counter()
                phase.peak_megabytes = max(phase.peak_megabytes, megabytes(server.process.pid, "VmRSS"))
    for connection in [*idle, *asking]:
        connection.socket.close()
    phase.seconds, phase.sent = seconds, sent
    return phase


async def measure(server: ServerProcess, minutes: float, times: float) -> tuple[Phase, Phase, Phase, Phase]:
    """Measure four phases: at capacity, one client, overloaded, and one client just after.

    The first two are measured before and after the overload, because a machine's speed changes within five minutes.
    """
    photo = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
    ask = request_sender(server, photo)
    await closed_loop(ask, CLIENTS, 2.0)
    capacity = await closed_loop(ask, CLIENTS, CAPACITY_SECONDS)
    before = await closed_loop(ask, 1, SINGLE_CLIENT_SECONDS)
    overloaded = open_loop(server, photo, times * capacity.rate, 60 * minutes)
    after = await closed_loop(ask, 1, SINGLE_CLIENT_SECONDS)
    again = await closed_loop(ask, CLIENTS, CAPACITY_SECONDS)
    later = await closed_loop(ask, 1, SINGLE_CLIENT_SECONDS)
    return capacity.combined_with(again), before.combined_with(later), overloaded, after


def judge(capacity: Phase, before: Phase, overloaded: Phase, after: Phase) -> list[tuple[str, str, bool]]:
    """Rows of: promise, what was measured, whether the promise was kept."""
    statuses = Counter(status for status, _ in overloaded.answers)
    p50, p99, last = statistics.median(capacity.successes), overloaded.quantile(0.99), overloaded.successes[-1]
    alone, again = statistics.median(before.successes), statistics.median(after.successes)
    unexpected = {status: count for status, count in statuses.items() if status not in (200, 429, 503, 504)}
    enough = overloaded.rate >= 0.9 * capacity.rate
    peak = overloaded.peak_megabytes
    planned, sent = overloaded.planned, overloaded.sent
    return [
        ("the load is offered", f"{sent} of {planned} requests", sent >= MIN_OFFERED * planned),
        ("no answer but 200, 429, 503, 504", str(dict(sorted(statuses.items()))), not unexpected),
        ("accepted ones meet their deadline", f"{last:.2f} s", last <= DEADLINE_SECONDS),
        ("p99 ≤ 3 × p50 at capacity", f"{p99:.3f} / {p50:.3f} s", p99 <= 3 * p50),
        ("goodput ≥ 0.9 of capacity", f"{overloaded.rate:.1f} / {capacity.rate:.1f} a second", enough),
        ("the first second after as before", f"{1000 * again:.1f} / {1000 * alone:.1f} ms", again <= 1.2 * alone),
        ("memory", f"{peak:.0f} MB at its peak", peak < 400),
    ]


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.hostile.overload", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument(
        "--times", type=float, default=4.0, help="load as a multiple of the server's capacity, which is measured first"
    )
    parser.add_argument("--model", default="auto", help="as for python -m serve")
    options, flags = parser.parse_known_args()
    with running_server(sys.executable, "--log-format", "json", "--model", options.model, *flags) as server:
        results = judge(*asyncio.run(measure(server, options.minutes, options.times)))
    for promise, found, kept in results:
        print(f"{promise:<36}{found:<44}{'kept' if kept else 'NOT KEPT'}")
    return 0 if all(kept for _, _, kept in results) else 1


if __name__ == "__main__":
    sys.exit(main())
