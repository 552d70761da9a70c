"""Tests the HTTP protocol over a socket pair, with small applications in place of the server's own."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

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


@pytest.mark.parametrize(
    ("head", "within"),
    [(b"Content-Length: 10", 512 * 1024), (b"Transfer-Encoding: chunked\r\n\r\nc", 64 * 1024)],
)
def test_reads_are_larger_within_a_body_that_is_not_chunked(head: bytes, within: int) -> None:
    sizes: list[int] = []

    class Reading(BudgetedProtocol):
        read_budget = ReadBudget()

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.asyncios = transport

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            sizes.append(self.asyncios.max_size)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        await hello(scope, receive, send)

    async def scenario(protocol: Reading, client: socket.socket) -> None:
        filler = b"X-Filler: " + b"x" * 5000  # or the head is read without the budget
        parts = [b"POST / HTTP/1.1\r\nHost: localhost\r\n" + filler + b"\r\n" + head + b"\r\n\r\n"]
        for part in (*parts, b"12345", b"67890" + (b"\r\n0\r\n\r\n" if b"chunked" in head else b"")):
            client.sendall(part)
            await asyncio.sleep(0.05)
        assert b"hello" in await received(client)

    connected(app, scenario, Reading)
    assert sizes == [within, within, 64 * 1024]
