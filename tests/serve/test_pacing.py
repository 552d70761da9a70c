"""Slow work is spread over iterations of the event loop, so that many requests do not delay a probe."""

import asyncio
import socket
import sys
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from serve.scheduling.pacing import Pacer
from tests.hostile.prober import probing, quantile
from tests.server_process import running_server
from tests.tiny_model import PATH as TINY_MODEL


def turns_of(pieces: int, seconds: float) -> list[tuple[int, int]]:
    """Does pieces of work of `seconds` each; returns each piece and the iteration of the event loop it was done in."""
    seen: list[tuple[int, int]] = []

    async def scenario() -> None:
        pacer, turn = Pacer(), 0

        async def count() -> None:
            nonlocal turn
            while len(seen) < pieces:
                turn += 1
                await asyncio.sleep(0)

        def compute(name: int) -> None:
            time.sleep(seconds)
            seen.append((name, turn))

        await asyncio.gather(count(), *(pacer.run(compute, name) for name in range(pieces)))

    asyncio.run(scenario())
    return seen


def test_slow_work_is_spread_over_iterations_in_order_of_arrival() -> None:
    done = turns_of(5, 0.006)
    assert [name for name, _ in done] == list(range(5))
    assert len({turn for _, turn in done}) == 5


def test_quick_work_does_not_wait() -> None:
    assert len({turn for _, turn in turns_of(5, 0.0)}) == 1


def test_a_cancelled_waiter_does_not_block_the_others() -> None:
    async def scenario() -> None:
        pacer = Pacer()
        pacer.spend(0.006)
        assert pacer.exhausted
        tasks = [asyncio.ensure_future(pacer.wait_for_turn()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait_for(asyncio.gather(tasks[0], tasks[2]), 5)
        await asyncio.wait_for(pacer.wait_for_turn(), 5)
        assert not pacer.exhausted

    asyncio.run(scenario())


@pytest.mark.parametrize("target", ["/metrics", "/docs", "/openapi.json", "/upload?" + "a&" * 511])
def test_many_cheap_requests_do_not_delay_a_probe(target: str) -> None:
    flags = ("--model", str(TINY_MODEL), "--log-format", "json")
    method, length = ("POST", "Content-Length: 0\r\n") if target.startswith("/upload") else ("GET", "")
    request = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n".encode()
    with running_server(sys.executable, *flags) as server, ExitStack() as stack:
        parts = urlsplit(server.url)
        host, port = parts.hostname or "", parts.port or 0
        crowd = [stack.enter_context(socket.create_connection((host, port), timeout=60)) for _ in range(150)]
        with probing(host, port) as latencies:
            time.sleep(0.3)
            for each in crowd:
                each.sendall(request * 9)
            for each in crowd:
                assert each.recv(12).startswith(b"HTTP/1.1 ")
    assert quantile(latencies, 0.9) < 1.0
