"""The scheduler, with fake steps that the tests control."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytest

from serve.errors import DeadlinePassed, NotReady, QueueFull, UndecodableImage
from serve.scheduling.queue_limit import QueueLimit
from serve.scheduling.scheduler import Scheduler
from serve.scheduling.task import Outcome

LONG = 30.0  # seconds that only a defective scheduler takes


class Work:
    """Fake steps that record their calls; `compute` of an item in `gates` waits until its gate is open."""

    def __init__(self) -> None:
        self.prepared: list[Any] = []
        self.computed: list[tuple[Any, bool]] = []
        self.gates: dict[Any, threading.Event] = {}
        self.begun: dict[Any, threading.Event] = {}
        self.preparing: dict[Any, Callable[[], object]] = {}  # called by `prepare` of an item
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def gate(self, *items: Any) -> None:
        """Makes `compute` of these items wait."""
        for item in items:
            self.gates[item] = threading.Event()
            self.begun[item] = threading.Event()

    def open(self, *items: Any) -> None:
        for item in items:
            self.gates[item].set()

    async def until_begun(self, *items: Any) -> None:
        for item in items:
            assert await asyncio.to_thread(self.begun[item].wait, LONG)

    def prepare(self, item: Any) -> Any:
        with self._lock:
            self.prepared.append(item)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        if item in self.preparing:
            self.preparing[item]()
        if item == "unreadable":
            self.at_once -= 1
            raise ValueError("unreadable")
        return item

    def compute(self, prepared: Any, wide: bool) -> str:
        if prepared in self.gates:
            self.begun[prepared].set()
            assert self.gates[prepared].wait(LONG)
        with self._lock:
            self.computed.append((prepared, wide))
            self.at_once -= 1
        return f"{prepared}!"

    def end(self, schedulers: Iterable[Scheduler[Any, Any, str]]) -> None:
        """Lets every step go on, and closes the schedulers that take them."""
        for gate in self.gates.values():
            gate.set()
        for scheduler in schedulers:
            scheduler.close(LONG)


Make = Callable[..., Scheduler[Any, Any, str]]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def make(work: Work) -> Iterator[Make]:
    made: list[Scheduler[Any, Any, str]] = []

    def start(streams: int = 2, max_queue: int = 100, item_seconds: float = 0.1) -> Scheduler[Any, Any, str]:
        made.append(
            Scheduler(work.prepare, work.compute, streams=streams, max_queue=max_queue, item_seconds=item_seconds)
        )
        return made[-1]

    yield start
    work.end(made)


def soon() -> float:
    return time.monotonic() + LONG


def results(outcomes: list[Outcome[str]]) -> list[str]:
    return [outcome.unwrap() for outcome in outcomes]


def test_results_come_in_the_order_of_their_items_and_an_error_is_its_own_items(make: Make) -> None:
    outcomes = asyncio.run(make().run(["a", "unreadable", "b"], soon()))
    assert [outcome.result for outcome in outcomes] == ["a!", None, "b!"]
    with pytest.raises(ValueError, match="unreadable"):
        outcomes[1].unwrap()
    assert all(outcome.queued_seconds >= 0 for outcome in outcomes)


def test_a_lone_item_gets_all_cpus(make: Make, work: Work) -> None:
    async def one_after_the_other(scheduler: Scheduler[Any, Any, str]) -> None:
        for item in "abc":
            await scheduler.run([item], soon())

    asyncio.run(one_after_the_other(make()))
    assert work.computed == [("a", True), ("b", True), ("c", True)]


def test_items_side_by_side_get_one_cpu_each(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate(*range(6))
        running = asyncio.ensure_future(scheduler.run(list(range(6)), soon()))
        await work.until_begun(0, 1)
        assert work.prepared in ([0, 1], [1, 0])  # two streams, so the others wait
        work.open(*range(6))
        assert results(await running) == [f"{number}!" for number in range(6)]

    asyncio.run(scenario(make(streams=2)))
    assert work.most_at_once == 2
    assert not any(wide for _, wide in work.computed[:4])


def test_while_one_has_all_cpus_the_next_waits(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate("wide")
        first = asyncio.ensure_future(scheduler.run(["wide"], soon()))
        await work.until_begun("wide")
        others = [asyncio.ensure_future(scheduler.run([item], soon())) for item in "ab"]
        await asyncio.sleep(0.05)
        assert work.prepared == ["wide"]
        work.open("wide")
        assert results(await first) == ["wide!"]
        assert [results(await other) for other in others] == [["a!"], ["b!"]]

    asyncio.run(scenario(make()))
    assert work.computed[0] == ("wide", True)


def test_once_one_has_had_all_cpus_as_many_begin_as_there_are_streams(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate("wide", "a", "b", "c")
        first = asyncio.ensure_future(scheduler.run(["wide"], soon()))
        await work.until_begun("wide")
        others = asyncio.ensure_future(scheduler.run(["a", "b", "c"], soon()))
        await asyncio.sleep(0.05)  # all three threads have asked for an item and wait
        work.open("wide")
        await work.until_begun("a", "b", "c")
        work.open("a", "b", "c")
        assert results(await first) + results(await others) == ["wide!", "a!", "b!", "c!"]

    asyncio.run(scenario(make(streams=3)))


def test_the_retry_time_accounts_for_idle_and_parallel_streams(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        with pytest.raises(QueueFull) as refusal:
            scheduler.require_room(9)
        # Four streams are idle and four may wait, so 1 of 9 is too many: 5 × 2 s on 4 streams until it may begin.
        assert refusal.value.retry_after == 2.5
        work.gate("a", "b")
        running = asyncio.ensure_future(scheduler.run(["a", "b"], soon()))
        await work.until_begun("a", "b")
        with pytest.raises(QueueFull) as refusal:
            scheduler.require_room(8)
        assert refusal.value.retry_after == 2.0  # 2 too many, and 2 streams idle
        work.open("a", "b")
        await running

    asyncio.run(scenario(make(streams=4, max_queue=4, item_seconds=2.0)))


def test_only_idle_streams_begin_at_once(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate("a", "b")
        running = asyncio.ensure_future(scheduler.run(["a", "b"], soon()))
        await work.until_begun("a", "b")
        scheduler.require_room(6)  # two of four streams are idle, and four may wait
        with pytest.raises(QueueFull):
            scheduler.require_room(7)
        work.open("a", "b")
        await running

    asyncio.run(scenario(make(streams=4, max_queue=4)))


def test_after_an_overflow_the_retry_time_is_that_of_the_short_queue(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate("a")
        running = asyncio.ensure_future(scheduler.run(["a", *range(12)], soon()))
        await work.until_begun("a")
        assert scheduler.depth == 12
        with pytest.raises(QueueFull, match=r"no room for 1 image: 12 are waiting and the limit is 12") as refusal:
            scheduler.require_room()
        assert refusal.value.retry_after == 20.0  # from now on 3 may wait, so 10 have to finish first, at 2 s each
        with pytest.raises(QueueFull, match="the limit is 3"):
            scheduler.require_room()
        work.open("a")
        await running
        assert scheduler.depth == 0

    asyncio.run(scenario(make(streams=1, max_queue=12, item_seconds=2.0)))


def test_at_least_one_may_wait_after_an_overflow(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate("a")
        running = asyncio.ensure_future(scheduler.run(["a", 1], soon()))
        await work.until_begun("a")
        scheduler.require_room()
        late = asyncio.ensure_future(scheduler.run([2], soon()))
        await asyncio.sleep(0)
        for limit in (2, 1):
            with pytest.raises(QueueFull, match=f"the limit is {limit}"):
                scheduler.require_room()
        work.open("a")
        await asyncio.gather(running, late)

    asyncio.run(scenario(make(streams=1, max_queue=2)))


def test_the_estimate_follows_items_that_had_one_cpu_and_a_result(make: Make) -> None:
    def estimate(scheduler: Scheduler[Any, Any, str]) -> float:
        with pytest.raises(QueueFull) as refusal:
            scheduler.require_room(9)  # five more than may wait: five items on two streams
        assert refusal.value.retry_after is not None
        return refusal.value.retry_after * 2 / 5

    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        assert estimate(scheduler) == 1000
        await scheduler.run(["alone, on all CPUs"], soon())
        await scheduler.run(["unreadable"], soon())
        assert estimate(scheduler) == 1000
        await scheduler.run(["a", "b", "unreadable"], soon())  # while others wait, no item has all CPUs
        assert estimate(scheduler) == pytest.approx(810, abs=5)  # two items took no time, and each has a weight of 0.1
        assert scheduler.done == 5

    asyncio.run(scenario(make(streams=2, max_queue=4, item_seconds=1000.0)))


def test_each_outcome_has_the_time_its_item_was_queued(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate("a")
        running = asyncio.ensure_future(scheduler.run(["a", "b"], soon()))
        await work.until_begun("a")
        await asyncio.sleep(0.1)
        work.open("a")
        first, second = await running
        assert 0 <= first.queued_seconds < second.queued_seconds
        assert 0.1 <= second.queued_seconds < LONG

    asyncio.run(scenario(make(streams=1)))


def test_threads_skip_a_task_whose_deadline_passed_unnoticed(make: Make, work: Work) -> None:
    """The event loop is busy and has not discarded it yet."""

    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate("first")
        first = asyncio.ensure_future(scheduler.run(["first"], soon()))
        await work.until_begun("first")
        late = asyncio.ensure_future(scheduler.run(["late", "later"], time.monotonic() + 0.05))
        await asyncio.sleep(0)
        time.sleep(0.1)  # noqa: ASYNC251  keeps the event loop busy
        work.open("first")
        give_up = time.monotonic() + LONG
        while scheduler.depth and time.monotonic() < give_up:
            time.sleep(0.001)  # noqa: ASYNC251
        assert scheduler.depth == 0
        with pytest.raises(DeadlinePassed):
            await late
        assert results(await first) == ["first!"]
        assert results(await scheduler.run(["next"], soon())) == ["next!"]

    asyncio.run(scenario(make(streams=1)))
    assert work.prepared == ["first", "next"]


def test_its_threads_are_named_daemons(make: Make) -> None:
    make(streams=2)
    streams = [thread for thread in threading.enumerate() if thread.name.startswith("stream-")]
    assert {"stream-0", "stream-1"} <= {thread.name for thread in streams}
    assert all(thread.daemon for thread in streams)


def test_the_queue_takes_exactly_as_many_as_its_limit(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        scheduler.require_room(5)
        with pytest.raises(QueueFull):
            scheduler.require_room(6)
        work.gate("a")
        running = asyncio.ensure_future(scheduler.run(["a", *"bcde"], soon()))
        await work.until_begun("a")
        with pytest.raises(QueueFull):
            scheduler.require_room(1)
        work.open("a")
        await running

    asyncio.run(scenario(make(streams=1, max_queue=4)))


def test_tasks_that_wait_at_the_close_end_with_not_ready(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate("at it")
        begun = asyncio.ensure_future(scheduler.run(["at it"], soon()))
        await work.until_begun("at it")
        waiting = [asyncio.ensure_future(scheduler.run([item], soon())) for item in "ab"]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(asyncio.to_thread(scheduler.close, LONG))
        for task in waiting:
            with pytest.raises(NotReady, match="has not begun this request"):
                await asyncio.wait_for(task, 5)
        work.open("at it")
        assert results(await begun) == ["at it!"]
        await closing
        with pytest.raises(NotReady, match="shutting down"):
            await scheduler.run(["late"], soon())

    asyncio.run(scenario(make(streams=1)))
    assert work.prepared == ["at it"]


def test_a_full_queue_refuses_at_once_with_a_retry_time(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate("first")
        running = [asyncio.ensure_future(scheduler.run(["first"], soon()))]
        await work.until_begun("first")
        # One stream is busy, so all of these wait; the limit is on those that wait.
        running.append(asyncio.ensure_future(scheduler.run(["a", "b", "c"], soon())))
        await asyncio.sleep(0)
        scheduler.require_room(1)
        with pytest.raises(QueueFull, match=r"no room for 4 images: 3 are waiting and the limit is 4") as refusal:
            await scheduler.run(["d", "e", "f", "g"], soon())
        assert refusal.value.retry_after == 6.0  # three too many, at two seconds each
        running.append(asyncio.ensure_future(scheduler.run(["d"], soon())))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            scheduler.require_room()
        work.open("first")
        for task in running:
            await task
        scheduler.require_room(4)

    asyncio.run(scenario(make(streams=1, max_queue=4, item_seconds=2.0)))
    assert "e" not in work.prepared


def test_an_overflowed_queue_is_kept_short_until_it_drains(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        async def submit(item: str) -> asyncio.Future[Any]:
            running = asyncio.ensure_future(scheduler.run([item], soon()))
            await asyncio.sleep(0)
            return running

        work.gate(*"abcde")
        running = [await submit("a")]
        await work.until_begun("a")
        running += [await submit(item) for item in "bcde"]
        with pytest.raises(QueueFull, match="4 are waiting and the limit is 4"):
            await scheduler.run(["f"], soon())
        for done, begun in ("ab", "bc", "cd"):  # three fewer wait, which would be room without the overflow
            work.open(done)
            await work.until_begun(begun)
        with pytest.raises(QueueFull, match="1 are waiting and the limit is 1"):
            scheduler.require_room()
        work.open("d")
        await work.until_begun("e")
        scheduler.require_room(4)
        work.open("e")
        await asyncio.gather(*running)
        scheduler.require_room(4)

    asyncio.run(scenario(make(streams=1, max_queue=4)))


def test_a_batch_is_accepted_once_the_queue_is_short_again(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate(*range(9))
        running = [asyncio.ensure_future(scheduler.run([number], soon())) for number in range(9)]
        await work.until_begun(0)
        with pytest.raises(QueueFull):
            scheduler.require_room()
        for number in range(6):
            work.open(number)
            await work.until_begun(number + 1)
        with pytest.raises(QueueFull, match="2 are waiting and the limit is 2"):
            scheduler.require_room(6)
        work.open(6)
        await work.until_begun(7)
        scheduler.require_room(6)
        work.open(7, 8)
        await asyncio.gather(*running)

    asyncio.run(scenario(make(streams=1, max_queue=8)))


def test_a_refused_batch_does_not_shorten_the_queue_for_others(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate("a")
        running = asyncio.ensure_future(scheduler.run(["a", "b", "c"], soon()))
        await work.until_begun("a")
        with pytest.raises(QueueFull):
            scheduler.require_room(4)
        scheduler.require_room(2)
        work.open("a")
        await running

    asyncio.run(scenario(make(streams=1, max_queue=4)))


def test_the_time_per_item_is_measured(make: Make) -> None:
    """The estimate starts far too high and falls to the time that items take."""
    scheduler = make(streams=2, max_queue=200, item_seconds=1000.0)

    async def scenario() -> float:
        await scheduler.run(list(range(200)), soon())
        with pytest.raises(QueueFull) as refusal:
            scheduler.require_room(203)
        assert refusal.value.retry_after is not None
        return refusal.value.retry_after

    assert asyncio.run(scenario()) < 1


def test_an_item_whose_deadline_passes_in_the_queue_is_not_computed(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate("first")
        first = asyncio.ensure_future(scheduler.run(["first"], soon()))
        await work.until_begun("first")
        late = asyncio.ensure_future(scheduler.run(["late", "later"], time.monotonic() + 0.05))
        await asyncio.sleep(0.1)
        work.open("first")
        with pytest.raises(DeadlinePassed, match="deadline"):
            await late
        scheduler.require_room(100)  # its items no longer count
        await first
        assert results(await scheduler.run(["next"], soon())) == ["next!"]

    asyncio.run(scenario(make(streams=1)))
    assert work.prepared == ["first", "next"]


def test_a_task_whose_deadline_has_passed_is_never_begun(make: Make, work: Work) -> None:
    with pytest.raises(DeadlinePassed):
        asyncio.run(make().run(["late"], time.monotonic() - 1))
    assert work.prepared == []


def test_a_caller_that_leaves_during_computation_discards_the_rest(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate("slow")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(scheduler.run(["slow", "never"], soon()), 0.1)
        work.open("slow")
        assert results(await scheduler.run(["next"], soon())) == ["next!"]

    asyncio.run(scenario(make(streams=1)))
    assert work.prepared == ["slow", "next"]


def test_a_cancelled_task_is_skipped_and_its_running_item_discarded(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate("at it")
        leaving = [asyncio.ensure_future(scheduler.run(["at it", "abandoned"], soon()))]
        await work.until_begun("at it")
        leaving += [asyncio.ensure_future(scheduler.run([number], soon())) for number in range(50)]
        staying = asyncio.ensure_future(scheduler.run(["stays"], soon()))
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        scheduler.require_room(99)
        work.open("at it")
        assert results(await staying) == ["stays!"]

    asyncio.run(scenario(make(streams=1)))
    assert work.prepared == ["at it", "stays"]


def test_tasks_take_turns_so_a_long_one_barely_delays_a_short_one(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.gate(("batch", 0))
        batch = [("batch", number) for number in range(32)]
        long = asyncio.ensure_future(scheduler.run(batch, soon()))
        await work.until_begun(("batch", 0))
        short = [asyncio.ensure_future(scheduler.run([name], soon())) for name in "abc"]
        await asyncio.sleep(0)
        work.open(("batch", 0))
        await asyncio.gather(long, *short)

    asyncio.run(scenario(make(streams=1)))
    assert work.prepared[:6] == [("batch", 0), ("batch", 1), "a", "b", "c", ("batch", 2)]


def test_under_load_every_caller_gets_its_own_result_and_no_cpu_is_oversubscribed(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        async def ask(client: int) -> None:
            for turn in range(20):
                items = [(client, turn, number) for number in range(1 + client % 3)]
                assert results(await scheduler.run(items, soon())) == [f"{item}!" for item in items]

        await asyncio.gather(*(ask(client) for client in range(30)))

    asyncio.run(scenario(make(streams=3, max_queue=1000)))
    assert work.most_at_once <= 3
    assert len(work.computed) == len(set(work.prepared)) == len(work.prepared) == 20 * 60


def test_closing_ends_the_threads_after_their_current_item(make: Make, work: Work) -> None:
    before = threading.active_count()
    scheduler = make(streams=3)
    assert threading.active_count() == before + 3
    asyncio.run(scheduler.run(["a"], soon()))
    scheduler.close(LONG)
    assert threading.active_count() == before


def test_closing_does_not_wait_for_a_step_that_does_not_end(make: Make, work: Work) -> None:
    scheduler = make(streams=2)
    work.gate("endless", "as well")

    async def scenario() -> None:
        tasks = [asyncio.ensure_future(scheduler.run([item], soon())) for item in work.gates]
        await work.until_begun(*work.gates)
        began = time.monotonic()
        scheduler.close(0.3)
        assert 0.3 <= time.monotonic() - began < 1.5
        work.open(*work.gates)
        assert [results(await task) for task in tasks] == [["endless!"], ["as well!"]]

    asyncio.run(scenario())


def test_a_closed_event_loop_does_not_affect_other_tasks(make: Make, work: Work) -> None:
    scheduler = make(streams=1)

    async def leave() -> None:
        work.gate("orphan")
        task = asyncio.ensure_future(scheduler.run(["orphan"], soon()))
        await work.until_begun("orphan")
        task.cancel()

    asyncio.run(leave())
    work.open("orphan")
    assert results(asyncio.run(scheduler.run(["next"], soon()))) == ["next!"]


def steps_aside(scheduler: Scheduler[Any, Any, str], gate: threading.Event, stopped: list[str], name: str) -> None:
    """Steps aside as `prepare` of an item, and goes on once the gate is open."""
    assert scheduler.step_aside(lambda: stopped.append(name))
    assert gate.wait(LONG)


def test_an_item_that_steps_aside_lets_others_begin_and_is_computed_in_turn(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        gate = threading.Event()
        work.preparing["slow"] = lambda: steps_aside(scheduler, gate, [], "slow")
        work.gate("b")
        slow = asyncio.ensure_future(scheduler.run(["slow"], soon()))
        assert results(await scheduler.run(["a"], soon())) == ["a!"]
        b = asyncio.ensure_future(scheduler.run(["b"], soon()))
        await work.until_begun("b")
        gate.set()
        await asyncio.sleep(0.05)
        assert [item for item, _ in work.computed] == ["a"]  # the only CPU is taken
        work.open("b")
        assert results(await slow) == ["slow!"]
        assert results(await b) == ["b!"]
        assert results(await scheduler.run(["c", "d"], soon())) == ["c!", "d!"]

    asyncio.run(scenario(make(streams=1)))


def test_an_item_that_steps_aside_and_fails_frees_its_place(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        work.preparing["unreadable"] = lambda: scheduler.step_aside(None) and not scheduler.step_aside(None)
        for _ in range(3):
            outcomes = await scheduler.run(["unreadable", "a"], soon())
            assert [outcome.result for outcome in outcomes] == [None, "a!"]

    asyncio.run(scenario(make(streams=1)))


def test_where_the_slow_lane_is_full_an_item_is_stopped_until_there_is_a_place(make: Make, work: Work) -> None:
    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        gates, stopped = {name: threading.Event() for name in "xyz"}, list[str]()
        for name, gate in gates.items():
            work.preparing[name] = partial(steps_aside, scheduler, gate, stopped, name)
        x = asyncio.ensure_future(scheduler.run(["x"], soon()))
        await asyncio.sleep(0.05)
        y = asyncio.ensure_future(scheduler.run(["y"], soon()))
        await asyncio.sleep(0.05)
        assert stopped == ["y"]
        # Its deadline is too near for what items take in the lane.
        with pytest.raises(QueueFull, match="takes long to decode: 1 more are waiting"):
            (await scheduler.run(["z"], time.monotonic() + 2))[0].unwrap()
        assert results(await scheduler.run(["a"], soon())) == ["a!"]
        for gate in gates.values():
            gate.set()
        assert [results(await each) for each in (x, y)] == [["x!"], ["y!"]]

    asyncio.run(scenario(make(streams=1)))


def test_an_item_whose_caller_leaves_does_not_wait_for_the_slow_lane(make: Make, work: Work) -> None:
    """Or its image would stay in memory, beyond the limit for uploads."""
    ended = threading.Event()

    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        gate = threading.Event()
        work.preparing["x"] = lambda: steps_aside(scheduler, gate, [], "")

        def wait() -> None:
            try:
                scheduler.step_aside(lambda: None)
            finally:
                ended.set()

        work.preparing["y"] = wait
        x = asyncio.ensure_future(scheduler.run(["x"], soon()))
        await asyncio.sleep(0.05)
        y = asyncio.ensure_future(scheduler.run(["y"], soon()))
        await asyncio.sleep(0.05)
        assert not ended.is_set()
        y.cancel()
        assert await asyncio.to_thread(ended.wait, 1)
        gate.set()
        assert results(await x) == ["x!"]
        assert results(await scheduler.run(["a"], soon())) == ["a!"]

    asyncio.run(scenario(make(streams=1)))


def test_a_refusal_holds_no_frames(make: Make, work: Work) -> None:
    """They would hold the image until the garbage collector finds the cycle."""

    def refuse() -> None:
        try:
            raise ValueError("damaged")
        except ValueError as error:
            raise UndecodableImage("damaged") from error

    work.preparing["bad"] = refuse
    error = asyncio.run(make().run(["bad"], soon()))[0].error
    assert isinstance(error, UndecodableImage)
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)


def test_only_so_many_items_wait_for_the_slow_lane(make: Make, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.scheduling.slow_lane._MAX_WAITING", 0)

    async def scenario(scheduler: Scheduler[Any, Any, str]) -> None:
        gate = threading.Event()
        for name in "xy":
            work.preparing[name] = lambda: steps_aside(scheduler, gate, [], "")
        x = asyncio.ensure_future(scheduler.run(["x"], soon()))
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFull):
            (await scheduler.run(["y"], soon()))[0].unwrap()
        gate.set()
        assert results(await x) == ["x!"]

    asyncio.run(scenario(make(streams=1)))


def test_another_thread_cannot_step_aside(make: Make) -> None:
    assert not make().step_aside(None)


def test_a_queue_that_has_overflowed_is_kept_shorter_until_it_is_empty() -> None:
    limit = QueueLimit(8, 1, 0.01)
    limit.require_room(1, 7, 1)
    assert not limit.overflowed
    with pytest.raises(QueueFull):
        limit.require_room(1, 8, 1)
    assert limit.overflowed
    limit.require_room(1, 1, 1)
    assert limit.overflowed
    limit.require_room(1, 0, 1)
    assert not limit.overflowed
