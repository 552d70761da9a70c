"""Limits on the rate of an upload and on the bytes of all uploads together."""

import asyncio
import time
from collections.abc import Iterable

import pytest

from serve.errors import UploadsFull, UploadTooSlow
from serve.scheduling.in_flight import InFlightRequest
from serve.scheduling.upload_budget import UploadBudget
from tests.exchange import started_lifecycle


async def receive(budget: UploadBudget, sizes: Iterable[int], pause: float = 0.0, rest: float = 0.0) -> int:
    """Receives chunks of these sizes, each after a pause, and then rests; returns the bytes counted at the end."""
    with InFlightRequest(started_lifecycle(), budget) as request:
        for size in sizes:
            await asyncio.sleep(pause)
            budget.take(request, size)
        await asyncio.sleep(rest)
        return budget.held


def test_chunks_are_counted_until_the_end() -> None:
    budget = UploadBudget(10, 1.0)
    assert asyncio.run(receive(budget, [3, 4])) == 7
    assert budget.held == 0


def test_an_upload_beyond_the_budget_is_refused_and_its_bytes_are_freed() -> None:
    budget = UploadBudget(10, 1.0)

    async def scenario() -> None:
        with InFlightRequest(started_lifecycle(), budget) as other:
            budget.take(other, 6)
            with pytest.raises(UploadsFull, match="the limit for all together is 10 bytes"):
                await receive(budget, [4, 1])
            assert budget.held == 6
        await receive(budget, [10])

    asyncio.run(scenario())
    assert budget.held == 0


def test_an_idle_upload_is_evicted_and_an_active_one_is_not() -> None:
    budget = UploadBudget(10, 30.0)

    async def silent() -> None:
        with pytest.raises(
            UploadsFull, match="silent for more than 1 s, and others needed its room: the limit for all"
        ):
            await receive(budget, [8], rest=60)

    async def scenario() -> None:
        stalled = asyncio.ensure_future(silent())
        await asyncio.sleep(0.1)
        with pytest.raises(UploadsFull, match="There is no room for this upload"):
            await receive(budget, [4])
        await asyncio.sleep(1.0)
        coming = asyncio.ensure_future(receive(budget, [1] * 6, pause=0.05))
        await asyncio.sleep(0.2)
        assert await coming == 6
        await asyncio.wait_for(stalled, 1)

    asyncio.run(scenario())
    assert budget.held == 0
    assert not budget.receiving


def test_an_upload_whose_body_has_arrived_is_not_evicted() -> None:
    budget = UploadBudget(10, 30.0)

    async def scenario() -> None:
        with InFlightRequest(started_lifecycle(), budget) as complete:
            budget.take(complete, 8)
            complete.body_received(time.monotonic() + 60)
            await asyncio.sleep(1.1)
            with pytest.raises(UploadsFull, match="There is no room for this upload"):
                await receive(budget, [4])
        assert budget.held == 0

    asyncio.run(scenario())


def test_an_upload_that_holds_nothing_is_not_evicted() -> None:
    """Its end would make no room."""
    budget = UploadBudget(10, 30.0)

    async def scenario() -> None:
        empty = asyncio.ensure_future(receive(budget, [], rest=1.4))
        stalled = asyncio.ensure_future(receive(budget, [8], rest=60))
        await asyncio.sleep(1.1)
        assert await receive(budget, [4]) == 4
        assert await empty == 0
        with pytest.raises(UploadsFull):
            await stalled

    asyncio.run(scenario())


def test_a_refused_upload_is_not_evicted_again() -> None:
    """Its task goes on until the response is sent."""
    budget = UploadBudget(10, 30.0)

    async def scenario() -> None:
        with pytest.raises(ZeroDivisionError), InFlightRequest(started_lifecycle(), budget) as request:
            budget.take(request, 8)
            raise ZeroDivisionError
        assert (budget.held, budget.receiving) == (0, {})
        await asyncio.sleep(1.1)
        assert await receive(budget, [10]) == 10
        assert budget.held == 0

    asyncio.run(scenario())


def test_an_upload_may_be_late_in_the_moment_it_is_evicted() -> None:
    budget = UploadBudget(10, 0.1)

    async def scenario() -> None:
        stalled = asyncio.ensure_future(receive(budget, [8], rest=60))
        await asyncio.sleep(0.05)
        (request,) = budget.receiving
        request.evict()
        request.end_late()
        with pytest.raises(UploadsFull, match="silent"):
            await stalled
        assert stalled.cancelling() == 0
        assert budget.held == 0

    asyncio.run(scenario())


def test_a_fast_upload_may_not_pause_for_longer() -> None:
    began = time.monotonic()
    with pytest.raises(UploadTooSlow):
        asyncio.run(receive(UploadBudget(10**8, 0.1), [10**7], rest=60))
    assert time.monotonic() - began < 5


def test_an_upload_that_arrives_byte_by_byte_is_refused() -> None:
    budget = UploadBudget(1000, 0.1)
    with pytest.raises(UploadTooSlow, match=r"too slowly: \d+ bytes in 0 s; the limit is 0.1 s"):
        asyncio.run(receive(budget, [1] * 100, pause=0.01))
    assert budget.held == 0


def test_a_large_upload_gets_more_time() -> None:
    assert asyncio.run(receive(UploadBudget(10**6, 0.1), [4096] * 6, pause=0.04)) == 6 * 4096  # 100 KB a second
