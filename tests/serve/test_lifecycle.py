"""Who is let in when, and how long those inside may take once the server is told to stop."""

import asyncio
import time

import pytest

from serve.errors import NotReady
from serve.lifecycle import Lifecycle


def started(grace_seconds: float = 30.0) -> Lifecycle:
    lifecycle = Lifecycle(grace_seconds)
    lifecycle.start()
    return lifecycle


async def visit(lifecycle: Lifecycle, seconds: float, arrived: bool = True) -> str:
    async with lifecycle.accept() as one:
        if arrived:
            one.arrived()
        await asyncio.sleep(seconds)
    return "answered"


def test_nobody_is_let_in_before_the_start_nor_while_draining() -> None:
    async def scenario() -> None:
        early = Lifecycle(1)
        assert not early.ready
        with pytest.raises(NotReady, match="not loaded yet"):
            await visit(early, 0)
        late = started()
        assert late.ready
        assert [late.begin_drain(), late.begin_drain()] == [True, False]
        assert not late.ready
        with pytest.raises(NotReady, match="shutting down"):
            await visit(late, 0)

    asyncio.run(scenario())


def test_draining_waits_for_those_inside() -> None:
    async def scenario() -> None:
        lifecycle = started()
        inside = [asyncio.ensure_future(visit(lifecycle, seconds)) for seconds in (0.1, 0.2)]
        await asyncio.sleep(0)
        await lifecycle.drain()
        assert await asyncio.gather(*inside) == ["answered", "answered"]

    asyncio.run(scenario())


def test_an_empty_server_drains_at_once() -> None:
    started_at = time.monotonic()
    asyncio.run(started().drain())
    assert time.monotonic() - started_at < 0.5


def test_a_stalled_upload_is_let_go_of_in_time_for_the_others() -> None:
    async def scenario() -> None:
        lifecycle = started(grace_seconds=1.2)
        stalled = asyncio.ensure_future(visit(lifecycle, 60, arrived=False))
        computing = asyncio.ensure_future(visit(lifecycle, 0.65))
        await asyncio.sleep(0)
        started_at = time.monotonic()
        await lifecycle.drain()
        assert 0.6 <= time.monotonic() - started_at < 1.2
        with pytest.raises(NotReady, match="shutting down"):
            await stalled
        assert await computing == "answered"

    asyncio.run(scenario())


def test_an_upload_that_arrives_while_draining_gets_the_time_to_be_answered() -> None:
    async def late(lifecycle: Lifecycle) -> str:
        async with lifecycle.accept() as one:
            await asyncio.sleep(0.3)
            one.arrived()
            await asyncio.sleep(0.6)
        return "answered"

    async def scenario() -> None:
        lifecycle = started(grace_seconds=1.6)
        inside = asyncio.ensure_future(late(lifecycle))
        await asyncio.sleep(0)
        await lifecycle.drain()
        assert await inside == "answered"

    asyncio.run(scenario())


def test_nothing_outlasts_the_grace_period() -> None:
    async def scenario() -> None:
        lifecycle = started(grace_seconds=0.7)
        endless = asyncio.ensure_future(visit(lifecycle, 60))
        await asyncio.sleep(0)
        started_at = time.monotonic()
        await lifecycle.drain()
        assert time.monotonic() - started_at < 0.7
        with pytest.raises(NotReady):
            await endless

    asyncio.run(scenario())
