"""When requests are accepted, and how long those in flight may take once the server drains."""

import asyncio
import time

import pytest

from serve.errors import DeadlinePassed, NotReady, QueueFull
from serve.scheduling.in_flight import InFlightRequest
from serve.scheduling.lifecycle import Lifecycle
from serve.scheduling.upload_budget import UploadBudget
from tests.exchange import large_budget, started_lifecycle


def accepts_requests(lifecycle: Lifecycle) -> bool:
    try:
        lifecycle.require_ready()
    except NotReady:
        return False
    return True


async def make_request(lifecycle: Lifecycle, seconds: float, body_received: bool = True) -> str:
    lifecycle.require_ready()
    with InFlightRequest(lifecycle, large_budget()) as one:
        if body_received:
            one.body_received(time.monotonic() + 100)
        await asyncio.sleep(seconds)
    return "answered"


def test_no_request_is_accepted_before_the_start_nor_while_draining() -> None:
    async def scenario() -> None:
        early = Lifecycle(1)
        assert not accepts_requests(early)
        with pytest.raises(NotReady, match="not loaded yet"):
            await make_request(early, 0)
        late = started_lifecycle()
        assert accepts_requests(late)
        assert [late.begin_drain(), late.begin_drain()] == [True, False]
        assert not accepts_requests(late)
        with pytest.raises(NotReady, match="shutting down"):
            await make_request(late, 0)

    asyncio.run(scenario())


def test_draining_stops_accepting_requests_at_once() -> None:
    async def scenario() -> None:
        lifecycle = started_lifecycle()
        assert lifecycle.draining is False
        await lifecycle.drain()
        assert lifecycle.draining is True
        assert not accepts_requests(lifecycle)
        with pytest.raises(NotReady, match="shutting down"):
            lifecycle.require_ready()

    asyncio.run(scenario())


def test_draining_waits_for_the_requests_in_flight() -> None:
    async def scenario() -> None:
        lifecycle = started_lifecycle()
        await make_request(lifecycle, 0)
        inside = [asyncio.ensure_future(make_request(lifecycle, seconds)) for seconds in (0.1, 0.2)]
        await asyncio.sleep(0)
        await lifecycle.drain()
        assert all(one.done() for one in inside)
        assert await asyncio.gather(*inside) == ["answered", "answered"]

    asyncio.run(scenario())


def test_a_server_without_requests_drains_at_once() -> None:
    started_at = time.monotonic()
    asyncio.run(started_lifecycle().drain())
    assert time.monotonic() - started_at < 0.5


def test_a_stalled_upload_is_cancelled_in_time_for_the_others() -> None:
    async def scenario() -> None:
        lifecycle = started_lifecycle(grace_seconds=4)
        stalled = asyncio.ensure_future(make_request(lifecycle, 60, body_received=False))
        computing = asyncio.ensure_future(make_request(lifecycle, 0.5))
        await asyncio.sleep(0)
        started_at = time.monotonic()
        await lifecycle.drain()
        assert 0.9 <= time.monotonic() - started_at < 4
        with pytest.raises(NotReady, match="shutting down"):
            await stalled
        assert await computing == "answered"

    asyncio.run(scenario())


def test_an_upload_completed_while_draining_is_answered() -> None:
    async def late(lifecycle: Lifecycle) -> str:
        with InFlightRequest(lifecycle, large_budget()) as one:
            await asyncio.sleep(0.2)
            one.body_received(time.monotonic() + 100)
            await asyncio.sleep(1.2)
        return "answered"

    async def scenario() -> None:
        lifecycle = started_lifecycle(grace_seconds=4)
        inside = asyncio.ensure_future(late(lifecycle))
        await asyncio.sleep(0)
        await lifecycle.drain()
        assert await inside == "answered"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("grace", "body_received", "left"),
    [(20, False, 10), (20, True, 18.5), (6, False, 3), (4, False, 1), (4, True, 2.5), (3, False, 0), (1, True, 0)],
)
def test_a_short_grace_period_keeps_time_for_refusals_and_last_responses(
    grace: float, body_received: bool, left: float
) -> None:
    async def scenario() -> None:
        with InFlightRequest(started_lifecycle(grace), UploadBudget(1, 1e9)) as one:
            if body_received:
                one.body_received(1e9)
            one.limit_draining(1000.0)
            assert one.due() == 1000.0 + left

    asyncio.run(scenario())


@pytest.mark.parametrize("body_received", [True, False])
def test_no_request_outlasts_the_grace_period(body_received: bool) -> None:
    async def scenario() -> None:
        lifecycle = started_lifecycle(grace_seconds=1.6)
        endless = asyncio.ensure_future(make_request(lifecycle, 60, body_received))
        await asyncio.sleep(0)
        started_at = time.monotonic()
        await lifecycle.drain()
        assert time.monotonic() - started_at < 1.6
        with pytest.raises(NotReady):
            await endless

    asyncio.run(scenario())


def test_cancelling_all_requests_ends_draining() -> None:
    async def scenario() -> None:
        lifecycle = started_lifecycle()
        endless = asyncio.ensure_future(make_request(lifecycle, 60))
        await asyncio.sleep(0)
        draining = asyncio.ensure_future(lifecycle.drain())
        await asyncio.sleep(0)
        lifecycle.cancel_all()
        await asyncio.wait_for(draining, 5)
        with pytest.raises(NotReady):
            await endless

    asyncio.run(scenario())


def test_a_passed_deadline_ends_a_request_and_no_other() -> None:
    async def scenario() -> None:
        lifecycle = started_lifecycle()

        async def answer(seconds: float) -> str:
            with InFlightRequest(lifecycle, large_budget()) as one:
                one.body_received(time.monotonic() + seconds)
                await asyncio.sleep(0.3)
            return "answered"

        began = time.monotonic()
        late, other, later = (asyncio.ensure_future(answer(seconds)) for seconds in (0.1, 60.0, 0.15))
        for each in (late, later):
            with pytest.raises(DeadlinePassed):
                await each
            assert each.cancelling() == 0
        assert 0.1 <= time.monotonic() - began < 0.3
        assert await other == "answered"

    asyncio.run(scenario())


def test_an_ended_request_leaves_its_task_usable() -> None:
    async def scenario() -> None:
        with pytest.raises(QueueFull), InFlightRequest(started_lifecycle(), large_budget()) as one:
            one.end(QueueFull("first"))
            one.end(NotReady("second"))
            await asyncio.sleep(60)
        await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_another_cancellation_is_passed_on() -> None:
    async def scenario() -> None:
        task = asyncio.ensure_future(make_request(started_lifecycle(), 60))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
