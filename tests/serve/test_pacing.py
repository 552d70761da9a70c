"""Costly pieces of work take turns of the event loop, and crowds of requests keep no probe waiting."""

import asyncio
import socket
import sys
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from serve.pacing import Pacer
from tests.hostile.prober import probing, quantile
from tests.server_process import running_server
from tests.tiny_model import PATH as TINY_MODEL


def test_those_who_ask_compute_in_different_turns_in_their_order() -> None:
    async def scenario() -> None:
        pacer, turn, seen = Pacer(), 0, []

        async def count() -> None:
            nonlocal turn
            while len(seen) < 5:
                turn += 1
                await asyncio.sleep(0)

        async def compute(name: int) -> None:
            await pacer.turn()
            seen.append((name, turn))

        await asyncio.gather(count(), *(compute(name) for name in range(5)))
        assert [name for name, _ in seen] == list(range(5))
        assert len({when for _, when in seen}) == 5
        before = turn
        await pacer.turn()  # nobody else asks
        assert turn == before

    asyncio.run(scenario())


def test_whoever_gives_up_holds_up_nobody() -> None:
    async def scenario() -> None:
        pacer = Pacer()
        await pacer.turn()
        tasks = [asyncio.ensure_future(pacer.turn()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait_for(asyncio.gather(tasks[0], tasks[2]), 5)
        await asyncio.wait_for(pacer.turn(), 5)

    asyncio.run(scenario())


@pytest.mark.parametrize("target", ["/metrics", "/docs", "/openapi.json", "/upload?" + "a&" * 511])
def test_crowds_of_cheap_requests_keep_no_probe_waiting(target: str) -> None:
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
