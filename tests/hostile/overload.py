"""`make overload`: send four times as many images as the server can classify, five minutes in all.

    python -m tests.hostile.overload --minutes 5 --times 4

An open loop: requests are sent at a constant rate, whatever happened to those before, each on an idle connection. The
overload is sent in rounds, and the goodput of each is compared with the capacity just before and after it, because a
machine's speed changes within minutes. The capacity is that of clients that connect for each request, as curl does.
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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.parse import urlsplit

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from tests.hostile.client import megabytes, send
from tests.hostile.requests import NO_ANSWER, Attack, post
from tests.server_process import ROOT, ServerProcess, running_server

CLIENTS = 16
ROUNDS = 6
CAPACITY_SECONDS = 10.0
SINGLE_CLIENT_SECONDS = 1.0
DEADLINE_SECONDS = 10.0  # the server's own default
MIN_OFFERED = 0.95
MIN_GOODPUT = 0.95  # of capacity
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

    @property
    def successes(self) -> list[float]:
        return sorted(seconds for status, seconds in self.answers if status == 200)

    @property
    def rate(self) -> float:
        return len(self.successes) / self.seconds

    @property
    def p50(self) -> float:
        return statistics.median(self.successes)

    def quantile(self, share: float) -> float:
        return self.successes[min(len(self.successes) - 1, int(share * len(self.successes)))]


def together(phases: Sequence[Phase]) -> Phase:
    """Several phases as one."""
    return Phase(
        [answer for phase in phases for answer in phase.answers],
        sum(phase.seconds for phase in phases),
        max(phase.peak_megabytes for phase in phases),
        sum(phase.planned for phase in phases),
        sum(phase.sent for phase in phases),
    )


@dataclass
class Phases:
    """What was measured, in this order: capacity and one client; then, each round, all four from `overloaded` on.

    Attributes:
        overloaded: An open loop of several times the capacity.
        after: One client, just after.
        capacity: A closed loop of `CLIENTS`.
        alone: One client.
    """

    overloaded: list[Phase] = field(default_factory=list)
    after: list[Phase] = field(default_factory=list)
    capacity: list[Phase] = field(default_factory=list)
    alone: list[Phase] = field(default_factory=list)

    @property
    def goodput(self) -> list[float]:
        """The goodput of each round as a share of the mean of the capacities before and after it."""
        around = pairwise(phase.rate for phase in self.capacity)
        return [phase.rate / statistics.mean(pair) for phase, pair in zip(self.overloaded, around, strict=True)]


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
    """A keep-alive connection that sends a request and reads its answer, in three system calls where possible.

    A state machine over a bare socket, because asyncio's streams used more CPU than the server's refusals.
    """

    def __init__(self, address: tuple[str, int], selector: selectors.BaseSelector) -> None:
        self.started = 0.0
        self.to_send = memoryview(b"")
        self.received = b""
        self.socket = socket.socket()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect(address)  # at once: the server is on this machine
        self.socket.setblocking(False)
        self._selector = selector
        selector.register(self.socket, selectors.EVENT_READ, self)

    def ask(self, data: bytes) -> None:
        """Send a request, now or as soon as the socket takes the rest."""
        self.started = time.perf_counter()
        self.to_send = memoryview(data)
        self.received = b""
        self._send()
        if self.to_send:
            self._selector.modify(self.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)

    def proceed(self) -> int | None:
        """Send or read more, as the socket allows.

        Returns:
            The answer's status once it is complete, `NO_ANSWER` if the connection ends before; else None.
        """
        if self.to_send:
            self._send()
            if not self.to_send:
                self._selector.modify(self.socket, selectors.EVENT_READ, self)
            return None
        try:
            more = self.socket.recv(65536)
        except BlockingIOError:
            return None
        except OSError:
            more = b""
        self.received += more
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if end and length and len(body) >= int(length[1]):
            return int(head.split(b" ", 2)[1])
        return None if more else NO_ANSWER

    def close(self) -> None:
        """Close the connection."""
        self._selector.unregister(self.socket)
        self.socket.close()

    @property
    def reusable(self) -> bool:
        return not self.to_send and self.received.startswith(b"HTTP") and b"\r\nconnection: close" not in self.received

    def _send(self) -> None:
        """Send as much as possible; `proceed` detects a closed connection."""
        with contextlib.suppress(BlockingIOError):
            try:
                self.to_send = self.to_send[self.socket.send(self.to_send) :]
            except ConnectionError:
                self.to_send = memoryview(b"")


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
                    idle.pop(0).close()
                sent += 1
                try:
                    connection = idle.pop() if idle else Connection(address, selector)
                except OSError:  # the server has ended
                    phase.answers.append((NO_ANSWER, 0.0))
                    continue
                connection.ask(request)
                asking.add(connection)
            for key, _ in selector.select(max(0.0, sent / rate - elapsed) if elapsed < seconds else 1.0):
                connection = key.data
                if connection not in asking:  # the server has closed one that was idle
                    idle.remove(connection)
                    connection.close()
                elif (status := connection.proceed()) is not None:
                    phase.answers.append((status, time.perf_counter() - connection.started))
                    asking.discard(connection)
                    if connection.reusable:
                        idle.append(connection)
                    else:
                        connection.close()
            if elapsed > seconds + 2 * DEADLINE_SECONDS:  # the rest hangs
                phase.answers += [(HANG, 2 * DEADLINE_SECONDS)] * len(asking)
                break
            if time.perf_counter() - sampled > 0.1:
                sampled = time.perf_counter()
                phase.peak_megabytes = max(phase.peak_megabytes, megabytes(server.process.pid, "VmRSS"))
        for connection in [*idle, *asking]:
            connection.close()
    phase.seconds, phase.sent = time.perf_counter() - started, sent
    return phase


async def measure(server: ServerProcess, minutes: float, times: float) -> Phases:
    """Measure all phases, with `minutes` of overload in all."""
    photo = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
    ask = request_sender(server, photo)
    await closed_loop(ask, CLIENTS, 2.0)
    found = Phases()

    async def measure_ordinary_load() -> None:
        found.capacity.append(await closed_loop(ask, CLIENTS, CAPACITY_SECONDS))
        found.alone.append(await closed_loop(ask, 1, SINGLE_CLIENT_SECONDS))

    await measure_ordinary_load()
    for _ in range(ROUNDS):
        rate = times * found.capacity[-1].rate
        found.overloaded.append(open_loop(server, photo, rate, 60 * minutes / ROUNDS))
        found.after.append(await closed_loop(ask, 1, SINGLE_CLIENT_SECONDS))
        await measure_ordinary_load()
    return found


def judge(found: Phases) -> list[tuple[str, str, bool]]:
    """Rows of: promise, what was measured, whether the promise was kept."""
    overloaded = together(found.overloaded)
    statuses = Counter(status for status, _ in overloaded.answers)
    p50, p99, last = together(found.capacity).p50, overloaded.quantile(0.99), overloaded.successes[-1]
    alone, again = together(found.alone).p50, together(found.after).p50
    unexpected = {status: count for status, count in statuses.items() if status not in (200, 429, 503, 504)}
    goodput, shares = statistics.median(found.goodput), sorted(found.goodput)
    peak = overloaded.peak_megabytes
    planned, sent = overloaded.planned, overloaded.sent
    return [
        ("the load is offered", f"{sent} of {planned} requests", sent >= MIN_OFFERED * planned),
        ("no answer but 200, 429, 503, 504", str(dict(sorted(statuses.items()))), not unexpected),
        ("accepted ones meet their deadline", f"{last:.2f} s", last <= DEADLINE_SECONDS),
        ("p99 ≤ 3 × p50 at capacity", f"{p99:.3f} / {p50:.3f} s", p99 <= 3 * p50),
        (
            f"goodput ≥ {MIN_GOODPUT} of capacity",
            f"{goodput:.3f} ({shares[0]:.3f} to {shares[-1]:.3f} in {len(shares)} rounds)",
            goodput >= MIN_GOODPUT,
        ),
        ("the first second after as before", f"{1000 * again:.1f} / {1000 * alone:.1f} ms", again <= 1.2 * alone),
        ("memory", f"{peak:.0f} MB at its peak", peak < 400),
    ]


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.hostile.overload", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="of overload, in all rounds together")
    parser.add_argument("--times", type=float, default=4.0, help="load as a multiple of the capacity just before")
    parser.add_argument("--model", default="auto", help="as for python -m serve")
    options, flags = parser.parse_known_args()
    with running_server(sys.executable, "--log-format", "json", "--model", options.model, *flags) as server:
        results = judge(asyncio.run(measure(server, options.minutes, options.times)))
    for promise, found, kept in results:
        print(f"{promise:<36}{found:<44}{'kept' if kept else 'NOT KEPT'}")
    return 0 if all(kept for _, _, kept in results) else 1


if __name__ == "__main__":
    sys.exit(main())
