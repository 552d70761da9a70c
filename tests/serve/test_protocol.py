"""Tests the HTTP protocol over a socket pair, with small applications in place of the server's own."""

import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from serve.server.connections import ConnectionLimiter
from serve.server.protocol import HttpProtocol
from serve.server.read_budget import BudgetedProtocol, ReadBudget

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connected(
    app: ASGIApp,
    scenario: Callable[[Any, socket.socket], Awaitable[None]],
    kind: type[HttpProtocol] = HttpProtocol,
) -> None:
    """Runs a scenario with a connection, of a kind, and its client's socket."""

    async def run() -> None:
        theirs, ours = socket.socketpair()
        theirs.settimeout(0)
        config = uvicorn.Config(app, log_config=None)
        with theirs:
            _, protocol = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: kind(config, ServerState(), {}), ours
            )
            await scenario(protocol, theirs)

    asyncio.run(run())


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that does not read the request."""
    await PlainTextResponse("hello")(scope, receive, send)


async def received(client: socket.socket) -> bytes:
    await asyncio.sleep(0.1)
    return client.recv(10000)


def test_a_client_that_leaves_with_pipelined_requests_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    ended = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            ended.append(scope["path"])
            assert task and not task.uncancel()

    async def scenario(protocol: HttpProtocol, client: socket.socket) -> None:
        client.sendall(GET + GET)
        await asyncio.sleep(0.1)
        protocol.transport.abort()
        await asyncio.sleep(0.1)

    with caplog.at_level(logging.ERROR):
        connected(app, scenario)
    assert (ended, caplog.messages) == (["/"], [])


def test_shutting_down_leaves_a_client_that_is_sending_time_to_read_its_answer() -> None:
    async def scenario(protocol: HttpProtocol, client: socket.socket) -> None:
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 999\r\n\r\nfirst")
        assert b"hello" in await received(client)
        protocol.shutdown()
        for _ in range(3):
            await asyncio.sleep(0.1)
            client.sendall(b"more")  # a connection that is closed would refuse it
        await asyncio.sleep(0.4)
        with pytest.raises(BrokenPipeError):
            client.sendall(b"more")

    connected(hello, scenario)


def test_what_is_not_http_does_not_cost_the_client_the_answer_before_it() -> None:
    may_answer = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await may_answer.wait()
        await hello(scope, receive, send)

    async def scenario(protocol: HttpProtocol, client: socket.socket) -> None:
        client.sendall(GET + b"this is not HTTP\r\n\r\n")
        await asyncio.sleep(0.1)
        may_answer.set()
        assert b"hello" in await received(client)
        client.sendall(b"and goes on")
        assert protocol.transport.lingering

    connected(app, scenario)


POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
LONG = POST + b"Content-Length: 100000\r\n\r\n"
LONGEST = POST + b"Content-Length: 1000000\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n20000\r\n"
EIGHTH = b"x" * 12_500
USUAL, LARGEST = 64 * 1024, 512 * 1024


def test_a_body_that_was_answered_unread_takes_no_memory() -> None:
    async def scenario(protocol: HttpProtocol, client: socket.socket) -> None:
        client.sendall(LONG + EIGHTH)
        assert (await received(client)).endswith(b"hello")
        client.sendall(EIGHTH)
        await asyncio.sleep(0.02)
        assert protocol.cycle.more_body
        assert not protocol.cycle.body

    connected(hello, scenario)


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await hello(scope, receive, send)


@pytest.mark.parametrize(
    ("app", "connections", "parts", "sizes"),
    [
        (read_all, 1, [LONG, EIGHTH, EIGHTH * 7, GET], [100_000, 87_500, USUAL, USUAL]),
        (read_all, 1, [LONGEST, EIGHTH * 5], [LARGEST, LARGEST]),
        (read_all, 65, [LONGEST, EIGHTH * 5], [USUAL, USUAL]),
        (read_all, 1, [CHUNKED, EIGHTH], [USUAL, USUAL]),
        # A body that is answered before its end, and a chunked one after it in the same data.
        (hello, 1, [LONG, EIGHTH * 7, EIGHTH + CHUNKED, EIGHTH], [100_000, USUAL, USUAL, USUAL]),
    ],
)
def test_a_read_is_larger_than_usual_only_within_a_body_of_known_length(
    app: ASGIApp, connections: int, parts: list[bytes], sizes: list[int]
) -> None:
    read: list[int] = []

    class Connections(ConnectionLimiter[HttpProtocol]):
        def __len__(self) -> int:
            return connections

    class Reading(BudgetedProtocol):
        read_budget = ReadBudget()
        all_connections = Connections(sys.maxsize)

        def read(self, data: bytes) -> None:
            super().read(data)
            read.append(self._reader.max_size)

    async def scenario(protocol: Reading, client: socket.socket) -> None:
        for part in parts:
            client.sendall(part)
            await asyncio.sleep(0.02)

    connected(app, scenario, Reading)
    assert read == sizes
