"""The scheduler of batches, with fake steps that the tests control."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from serve.errors import DeadlinePassed
from serve.scheduling.batch_scheduler import BatchScheduler
from tests.serve.test_scheduler import LONG, Work, results, soon
from tests.server_process import wait_for

Make = Callable[..., BatchScheduler[Any, Any, str]]


class BatchWork(Work):
    """Steps that also record batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Any]] = []
        self.lost = 0  # results that `compute_batch` leaves out

    def compute_batch(self, prepared: Sequence[Any], wide: bool) -> list[str]:
        self.batches.append(list(prepared))
        if "poison" in prepared:
            raise MemoryError("too large a batch")
        return [f"{each}!" for each in prepared][self.lost :]


@pytest.fixture
def work() -> BatchWork:
    return BatchWork()


@pytest.fixture
def make(work: BatchWork) -> Iterator[Make]:
    made: list[BatchScheduler[Any, Any, str]] = []

    def start(streams: int = 1, max_batch: int = 4, wait_seconds: float = 0.0) -> BatchScheduler[Any, Any, str]:
        limits: dict[str, Any] = {"streams": streams, "max_queue": 100, "item_seconds": 0.1}
        limits |= {"max_batch": max_batch, "wait_seconds": wait_seconds}
        made.append(BatchScheduler(work.prepare, work.compute, work.compute_batch, **limits))
        return made[-1]

    yield start
    work.end(made)


async def while_busy(scheduler: BatchScheduler[Any, Any, str], work: BatchWork, calls: list[Any]) -> list[Any]:
    """Runs calls that all wait until the only thread has finished another item."""
    work.gate("first")
    first = asyncio.ensure_future(scheduler.run(["first"], soon()))
    await work.until_begun("first")
    waiting = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0.05)
    work.open("first")
    assert results(await first) == ["first!"]
    return list(await asyncio.gather(*waiting, return_exceptions=True))


def test_items_that_wait_are_computed_together_and_no_more_than_the_limit(make: Make, work: BatchWork) -> None:
    scheduler = make()

    async def scenario() -> None:
        answers = await while_busy(scheduler, work, [scheduler.run([name], soon()) for name in "abcdef"])
        assert [results(each) for each in answers] == [[f"{name}!"] for name in "abcdef"]

    asyncio.run(scenario())
    assert work.batches == [["a", "b", "c", "d"], ["e", "f"]]
    assert (scheduler.depth, scheduler._busy, scheduler.done) == (0, 0, 7)


def test_tasks_take_turns_within_a_batch(make: Make, work: BatchWork) -> None:
    scheduler = make()
    asyncio.run(while_busy(scheduler, work, [scheduler.run(["a", "b", "c"], soon()), scheduler.run(["x"], soon())]))
    assert work.batches == [["a", "x", "b", "c"]]


def test_an_item_that_cannot_be_prepared_fails_alone(make: Make, work: BatchWork) -> None:
    scheduler = make()
    (outcomes,) = asyncio.run(while_busy(scheduler, work, [scheduler.run(["a", "unreadable", "b"], soon())]))
    assert [outcome.result for outcome in outcomes] == ["a!", None, "b!"]
    assert isinstance(outcomes[1].error, ValueError)
    assert work.batches == [["a", "b"]]


def test_a_batch_that_fails_is_computed_item_by_item_and_logged_once(
    make: Make, work: BatchWork, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = make()
    for _ in range(2):
        (outcomes,) = asyncio.run(while_busy(scheduler, work, [scheduler.run(["a", "poison", "b"], soon())]))
        assert results(outcomes) == ["a!", "poison!", "b!"]
    [line] = caplog.messages
    assert line == "a batch of 3 images failed; each is computed alone: MemoryError('too large a batch')"


def test_results_are_not_handed_out_if_their_number_is_wrong(
    make: Make, work: BatchWork, caplog: pytest.LogCaptureFixture
) -> None:
    work.lost = 1
    scheduler = make()
    (outcomes,) = asyncio.run(while_busy(scheduler, work, [scheduler.run(["a", "b"], soon())]))
    assert results(outcomes) == ["a!", "b!"]  # computed alone
    assert [item for item, _ in work.computed] == ["first", "a", "b"]
    assert "1 results for a batch of 2" in caplog.text


def test_a_cancelled_item_and_one_past_its_deadline_are_not_computed(make: Make, work: BatchWork) -> None:
    scheduler = make()

    async def scenario() -> None:
        async def cancelled() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(scheduler.run(["gone"], soon()), 0.01)

        late = scheduler.run(["late"], time.monotonic() + 0.01)
        answers = await while_busy(scheduler, work, [scheduler.run(["a"], soon()), cancelled(), late])
        assert results(answers[0]) == ["a!"]
        assert isinstance(answers[2], DeadlinePassed)

    asyncio.run(scenario())
    assert work.prepared == ["first", "a"]
    wait_for(lambda: (scheduler.depth, scheduler._busy) == (0, 0))  # a thread gives its CPU back after its answers


def test_idle_threads_take_items_before_a_batch_grows(make: Make, work: BatchWork) -> None:
    both = threading.Barrier(2)
    for name in "ab":
        work.preparing[name] = lambda: both.wait(LONG)  # passes only if two threads prepare at the same time
    assert results(asyncio.run(make(streams=2).run(["a", "b"], soon()))) == ["a!", "b!"]
    assert work.batches == []


def test_a_lone_item_does_not_wait_and_gets_all_cpus(make: Make, work: BatchWork) -> None:
    started = time.monotonic()
    assert results(asyncio.run(make().run(["a"], soon()))) == ["a!"]
    assert time.monotonic() - started < 1
    assert work.computed == [("a", True)]


def test_a_batch_waits_for_more_where_it_is_told_to(make: Make, work: BatchWork) -> None:
    async def scenario(scheduler: BatchScheduler[Any, Any, str]) -> None:
        a = asyncio.ensure_future(scheduler.run(["a"], soon()))
        await asyncio.sleep(0.05)
        assert not a.done()
        started = time.monotonic()
        assert results(await scheduler.run(["b"], soon())) == ["b!"]  # the batch is full, so it waits no longer
        assert results(await a) == ["a!"]
        assert time.monotonic() - started < LONG / 2
        scheduler._wait_seconds = 0.2
        started = time.monotonic()
        assert results(await scheduler.run(["c"], soon())) == ["c!"]
        assert 0.2 <= time.monotonic() - started < LONG / 2

    asyncio.run(scenario(make(max_batch=2, wait_seconds=LONG)))
    assert work.batches == [["a", "b"]]


def test_threads_that_are_idle_leave_new_items_to_the_one_that_waits(make: Make, work: BatchWork) -> None:
    async def one_after_the_other(scheduler: BatchScheduler[Any, Any, str]) -> None:
        first = asyncio.ensure_future(scheduler.run(["a"], soon()))
        await asyncio.sleep(0.05)
        await asyncio.gather(*(scheduler.run([name], soon()) for name in "bcd"))
        assert results(await first) == ["a!"]

    asyncio.run(one_after_the_other(make(streams=4, max_batch=4, wait_seconds=LONG)))
    assert sum(map(len, work.batches)) + len(work.computed) == 4
    assert work.batches[0][0] == "a"
    assert len(work.batches[0]) >= 2


def test_a_batch_waits_no_longer_than_a_deadline_allows(make: Make, work: BatchWork) -> None:
    scheduler = make(wait_seconds=LONG)
    started = time.monotonic()
    assert results(asyncio.run(scheduler.run(["a"], started + 0.6))) == ["a!"]
    assert 0.3 < time.monotonic() - started < 0.6


def test_what_nobody_waits_for_is_not_computed_with_its_batch(make: Make, work: BatchWork) -> None:
    scheduler = make(max_batch=3, wait_seconds=LONG)

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(scheduler.run(["gone"], soon()), 0.05)
        calls = [scheduler.run([name], soon()) for name in "ab"]
        assert [results(each) for each in await asyncio.gather(*calls)] == [["a!"], ["b!"]]

    asyncio.run(scenario())
    assert work.prepared == ["gone", "a", "b"]
    assert work.batches == [["a", "b"]]
    wait_for(lambda: (scheduler.depth, scheduler._busy) == (0, 0))  # a thread gives its CPU back after its answers


def test_a_batch_takes_only_what_came_before_it_began(make: Make, work: BatchWork) -> None:
    scheduler = make()

    async def scenario() -> None:
        work.gate("first")
        first = asyncio.ensure_future(scheduler.run(["first"], soon()))
        await work.until_begun("first")
        later = asyncio.ensure_future(scheduler.run(["later"], soon()))
        await asyncio.sleep(0.05)
        work.open("first")
        assert results(await first) == ["first!"]
        assert results(await later) == ["later!"]

    asyncio.run(scenario())
    assert work.batches == []


def test_an_item_that_steps_aside_keeps_nothing_of_its_batch_waiting(make: Make, work: BatchWork) -> None:
    scheduler = make()
    gate = threading.Event()

    def slow() -> None:
        assert scheduler.step_aside(lambda: None)
        assert gate.wait(LONG)

    work.preparing["slow"] = slow

    async def scenario() -> None:
        work.gate("first")
        first = asyncio.ensure_future(scheduler.run(["first"], soon()))
        await work.until_begun("first")
        a, b = (asyncio.ensure_future(scheduler.run([name], soon())) for name in "ab")
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(scheduler.run(["slow"], soon()))
        await asyncio.sleep(0.05)
        work.open("first")
        assert [results(await each) for each in (first, a, b)] == [["first!"], ["a!"], ["b!"]]
        assert results(await scheduler.run(["c"], soon())) == ["c!"]
        assert not waiting.done()
        gate.set()
        assert results(await waiting) == ["slow!"]

    asyncio.run(scenario())
    assert work.batches == [["a", "b"]]
    assert (scheduler._busy, scheduler._aside) == (0, 0)


def test_a_closed_scheduler_finishes_its_batch(make: Make, work: BatchWork) -> None:
    scheduler = make(wait_seconds=LONG)

    async def scenario() -> None:
        a = asyncio.ensure_future(scheduler.run(["a"], soon()))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(scheduler.close, LONG)
        assert results(await a) == ["a!"]

    asyncio.run(scenario())
