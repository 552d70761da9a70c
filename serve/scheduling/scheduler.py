"""Tasks of one or more items → their results, on as many threads as there are CPUs; knows no HTTP.

Every item takes one thread through two steps: `prepare`, which is one thread's work, and `compute`, which can spread
over all CPUs. It does so (it is `wide`) where the thread finds itself alone; while others work or wait, each has one
CPU and they run side by side. So one caller gets the shortest answer, many get the highest rate, and there are never
more busy threads than CPUs.

Admission is bounded by items waiting. A queue that has overflowed is kept short until it has been empty: a burst may
use all of it, but who is accepted while more comes than can be done waits a quarter of the time. Tasks take turns item
by item, so that a long one delays a short one by little; a task whose waiter has gone, or whose deadline has passed, is
skipped.

Errors that leave here: `QueueFull`, `DeadlinePassed` and `NotReady` from `run`, besides what the two steps raise.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar, cast

from serve.errors import DeadlinePassed, NotReady, QueueFull

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

# Weight of the latest item in the running mean of what an item costs.
_SMOOTHING: Final = 0.1
# By what the queue is shortened once it has overflowed.
_OVERFLOWED: Final = 4


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of one item: its result or its error, and the seconds it waited for a thread."""

    queued_seconds: float
    result: Result | None = None
    error: BaseException | None = None

    def unwrap(self) -> Result:
        """The result; raises the error where there is one."""
        if self.error is not None:
            raise self.error
        return cast(Result, self.result)


@dataclass(eq=False)
class _Task:
    """One call of `run`: its items still waiting, by position, and the outcomes so far."""

    waiting: deque[tuple[int, Any]]
    deadline: float
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[list[Outcome[Any]]]
    submitted: float
    outcomes: list[Outcome[Any] | None]
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.missing = len(self.outcomes)


class Scheduler(Generic[Item, Prepared, Result]):
    """`streams` threads that take items in turn. Made and closed anywhere; `run` belongs to an event loop.

    prepare: item → what `compute` takes. compute: that and whether it may use all CPUs → result. Both are called on
    the scheduler's threads; an exception from either is that item's outcome and nobody else's.
    streams: items worked on side by side, at least 1. max_queue: items that may wait for a thread.
    item_seconds: what an item takes one thread, to begin the estimate of the drain rate with.
    """

    def __init__(
        self,
        prepare: Callable[[Item], Prepared],
        compute: Callable[[Prepared, bool], Result],
        *,
        streams: int,
        max_queue: int,
        item_seconds: float,
    ) -> None:
        self._prepare = prepare
        self._compute = compute
        self._max_queue = max_queue
        self._limit = max_queue
        self._item_seconds = item_seconds
        self._tasks: deque[_Task] = deque()
        self._waiting = 0
        self._busy = 0
        self._wide = False
        self._closed = False
        self.done = 0  # items that a thread has been through, for whom it helps to know whether anything happened
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"stream-{number}", daemon=True) for number in range(streams)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, items: Sequence[Item], deadline: float) -> list[Outcome[Result]]:
        """The outcome of each item, in their order; cancelling the caller drops what has not begun.

        items: at least one. deadline: on the clock of `time.monotonic`. Raises `QueueFull` at once where there is no
        room for all, and `DeadlinePassed` as soon as it has.
        """
        loop = asyncio.get_running_loop()
        task = _Task(
            deque(enumerate(items)), deadline, loop, loop.create_future(), time.monotonic(), [None] * len(items)
        )
        with self._changed:
            self._require_room(len(items))
            self._tasks.append(task)
            self._waiting += len(items)
            self._changed.notify(len(items))
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await task.done
        except TimeoutError:
            raise DeadlinePassed.before_answer() from None
        finally:
            self._drop(task)

    @property
    def depth(self) -> int:
        """Items that wait for a thread."""
        return self._waiting

    def require_room(self, count: int = 1) -> None:
        """Raise the `QueueFull` that `run` would raise now for so many items."""
        with self._changed:
            self._require_room(count)

    def close(self, seconds: float) -> None:
        """End the threads; each finishes the item it is at, and tasks that still wait end with `NotReady`.

        seconds: how long that may take; a thread that takes longer is left behind.
        """
        until = time.monotonic() + seconds
        with self._changed:
            self._closed = True
            for task in self._tasks:
                with contextlib.suppress(RuntimeError):  # as in `_finish`
                    task.loop.call_soon_threadsafe(_give_up, task)
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _require_room(self, count: int) -> None:
        if self._closed:
            raise NotReady("The server is shutting down.")
        idle = len(self._threads) - self._busy
        if not self._waiting:
            self._limit = self._max_queue
        limit = self._limit
        too_many = self._waiting + count - idle - self._max_queue
        if self._waiting + 1 - idle > limit:  # not even one: it is the queue that is too long, not the task
            self._limit = max(1, self._max_queue // _OVERFLOWED)
            too_many = max(too_many, self._waiting + 1 - self._limit)
        elif too_many <= 0:
            return
        seconds = (too_many + idle) * self._item_seconds / len(self._threads)
        raise QueueFull(
            f"There is no room for {count} picture{'s' * (count > 1)}: {self._waiting} are waiting and the limit is "
            f"{limit}; try again in a moment.",
            retry_after=seconds,
        )

    def _drop(self, task: _Task) -> None:
        """Forget what of a task has not begun: nobody waits for it any more."""
        with self._changed:
            if task.waiting:
                self._waiting -= len(task.waiting)
                task.waiting.clear()
                self._tasks.remove(task)

    def _work(self) -> None:
        while self._work_on_next():
            pass

    def _work_on_next(self) -> bool:
        """Take one item through both steps; False once the scheduler is closed."""
        taken = self._take()
        if taken is None:
            return False
        task, position, item = taken
        started = time.monotonic()
        queued = started - task.submitted
        wide = False
        try:
            prepared = self._prepare(item)
            wide = self._widen()
            outcome = Outcome(queued, self._compute(prepared, wide))
        except BaseException as error:  # whatever it is, it is this item's outcome and nobody else's
            outcome = Outcome(queued, error=error)
        # In this order: whoever has the outcome finds the CPU free and the item counted.
        self._release(None if wide or outcome.error else time.monotonic() - started)
        self._finish(task, position, outcome)
        return True

    def _take(self) -> tuple[_Task, int, Any] | None:
        """The next item, as soon as a CPU is free for it; None once the scheduler is closed."""
        with self._changed:
            while True:
                while not self._closed and (self._wide or not self._tasks):
                    self._changed.wait()
                if self._closed:
                    return None
                task = self._tasks.popleft()
                if task.deadline <= time.monotonic():
                    self._waiting -= len(task.waiting)
                    task.waiting.clear()
                    continue
                position, item = task.waiting.popleft()
                self._waiting -= 1
                self._busy += 1
                if task.waiting:
                    self._tasks.append(task)  # behind the others: they take turns
                return task, position, item

    def _widen(self) -> bool:
        """Whether the calling thread is alone, and so may have all CPUs until it is released."""
        with self._changed:
            self._wide = self._busy == 1 and not self._tasks
            return self._wide

    def _release(self, seconds: float | None) -> None:
        """Free the calling thread's CPU. seconds: what its item took on one CPU, where it tells."""
        with self._changed:
            self._busy -= 1
            self.done += 1
            if seconds is not None:
                self._item_seconds += (seconds - self._item_seconds) * _SMOOTHING
            if self._wide:
                self._wide = False
                self._changed.notify_all()

    def _finish(self, task: _Task, position: int, outcome: Outcome[Result]) -> None:
        with self._changed:
            task.outcomes[position] = outcome
            task.missing -= 1
            if task.missing:
                return
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the waiter gone with it
            task.loop.call_soon_threadsafe(_resolve, task)


def _give_up(task: _Task) -> None:
    if not task.done.done():
        task.done.set_exception(NotReady("The server is shutting down and has not begun this request."))


def _resolve(task: _Task) -> None:
    if not task.done.done():  # the waiter may have left
        task.done.set_result(cast(list[Outcome[Any]], task.outcomes))
