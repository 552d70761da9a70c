"""Runs tasks of one or more items on `streams` threads, by default one per CPU.

A thread takes an item through two steps: `prepare`, which uses one CPU, and `compute`, which can use all of them. It
gets all CPUs if no other item is running or waiting; otherwise items run side by side on one CPU each. So a single
caller gets the lowest latency, many callers get the highest throughput, and there are never more busy threads than
CPUs.

The number of waiting items is limited. Tasks take turns item by item, so a long task delays a short one only a little.
A task whose caller was cancelled, or whose deadline has passed, is skipped.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from serve.errors import DeadlinePassed, NotReady
from serve.scheduling.queue_limit import QueueLimit

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """The result or the error of one item, and the seconds it waited for a thread."""

    queued_seconds: float
    result: Result | None = None
    error: BaseException | None = None

    def unwrap(self) -> Result:
        """Returns the result, or raises the error."""
        if self.error is not None:
            raise self.error
        return cast(Result, self.result)


class _Task:
    """One call of `run`: its waiting items, each with its position, and the outcomes so far."""

    def __init__(self, items: Sequence[Any], deadline: float) -> None:
        self.waiting = deque(enumerate(items))
        self.deadline = deadline
        self.submitted = time.monotonic()
        self.outcomes: list[Outcome[Any] | None] = [None] * len(items)
        self.missing = len(items)
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[list[Outcome[Any]]] = self._loop.create_future()

    def settle(self, error: NotReady | None = None) -> None:
        """Wakes the caller of `run` with the outcomes or an error; called on any thread."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed, so no caller waits any more
            self._loop.call_soon_threadsafe(self._settle, error)

    def _settle(self, error: NotReady | None) -> None:
        if self.done.done():  # its caller was cancelled
            return
        if error is None:
            self.done.set_result(cast(list[Outcome[Any]], self.outcomes))
        else:
            self.done.set_exception(error)


class Scheduler(Generic[Item, Prepared, Result]):
    """Threads that take items in turn. Created and closed on any thread; `run` is called on an event loop.

    Args:
        prepare: item → input of `compute`. Like `compute`, called on the scheduler's threads; an exception of either
            is the outcome of that item alone.
        compute: what `prepare` returned, and whether all CPUs may be used → result.
        streams: number of threads, at least 1.
        max_queue: number of items that may wait for a thread.
        item_seconds: initial estimate of the time that an item takes one thread.
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
        self._limit = QueueLimit(max_queue, streams, item_seconds)
        self._tasks: deque[_Task] = deque()
        self.depth = 0  # items that wait for a thread
        self._busy = 0
        self._one_has_all_cpus = False
        self._closed = False
        self.done = 0  # items completed so far, whatever their outcome
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"stream-{number}", daemon=True) for number in range(streams)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, items: Sequence[Item], deadline: float) -> list[Outcome[Result]]:
        """Returns the items' outcomes, in order. Cancelling the caller discards the items that have not begun.

        Args:
            items: at least one.
            deadline: on the clock of `time.monotonic`.

        Raises:
            QueueFull: there is no room for all items; raised at once.
            DeadlinePassed: as soon as the deadline has passed.
            NotReady: the scheduler was closed first.
        """
        task = _Task(items, deadline)
        with self._changed:
            self.require_room(len(items))
            self._tasks.append(task)
            self.depth += len(items)
            self._changed.notify(len(items))
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await task.done
        except TimeoutError:
            raise DeadlinePassed.before_answer() from None
        finally:
            with self._changed:
                if task.waiting:
                    self._tasks.remove(task)
                    self._discard_waiting(task)

    def require_room(self, count: int = 1) -> None:
        """Raises the `QueueFull` or `NotReady` that `run` would raise now for `count` items."""
        with self._changed:  # reentrant
            if self._closed:
                raise NotReady("The server is shutting down.")
            self._limit.require_room(count, self.depth, self._busy)

    def close(self, seconds: float) -> None:
        """Ends the threads, each after its current item. Tasks that still wait end with `NotReady`.

        Args:
            seconds: time limit; a thread that takes longer is left running.
        """
        until = time.monotonic() + seconds
        with self._changed:
            self._closed = True
            for task in self._tasks:
                task.settle(NotReady("The server is shutting down and has not begun this request."))
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _discard_waiting(self, task: _Task) -> None:
        self.depth -= len(task.waiting)
        task.waiting.clear()

    def _work(self) -> None:
        while self._work_on_next():  # a function of its own, so that a waiting thread holds no reference to an image
            pass

    def _work_on_next(self) -> bool:
        """Takes one item through both steps; returns False once the scheduler is closed."""
        taken = self._take()
        if taken is None:
            return False
        task, position, item = taken
        started = time.monotonic()
        queued = started - task.submitted
        all_cpus = False
        try:
            prepared = self._prepare(item)
            all_cpus = self._claim_all_cpus()
            outcome = Outcome(queued, self._compute(prepared, all_cpus))
        except BaseException as error:  # any error is the outcome of this item alone
            outcome = Outcome(queued, error=error)
        task.outcomes[position] = outcome
        self._finish(task, None if all_cpus or outcome.error else time.monotonic() - started)
        return True

    def _take(self) -> tuple[_Task, int, Any] | None:
        """Waits for an item and a free CPU; None once the scheduler is closed."""
        with self._changed:
            while True:
                while not self._closed and (self._one_has_all_cpus or not self._tasks):
                    self._changed.wait()
                if self._closed:
                    return None
                task = self._tasks.popleft()
                if task.deadline <= time.monotonic():
                    self._discard_waiting(task)
                    continue
                position, item = task.waiting.popleft()
                self.depth -= 1
                self._busy += 1
                if task.waiting:
                    self._tasks.append(task)  # behind the others, because tasks take turns
                return task, position, item

    def _claim_all_cpus(self) -> bool:
        """Gives the calling thread all CPUs until `_finish` if no other item runs or waits; returns whether it did."""
        with self._changed:
            self._one_has_all_cpus = self._busy == 1 and not self._tasks
            return self._one_has_all_cpus

    def _finish(self, task: _Task, seconds: float | None) -> None:
        """Frees the calling thread's CPU, and then wakes the task's caller if this was its last item.

        Args:
            seconds: the time that the item took on one CPU, if known.
        """
        with self._changed:
            self._busy -= 1
            self.done += 1
            if seconds is not None:
                self._limit.record(seconds)
            if self._one_has_all_cpus:
                self._one_has_all_cpus = False
                self._changed.notify_all()
            task.missing -= 1
            if task.missing:
                return
        task.settle()
