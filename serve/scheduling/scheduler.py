"""Runs tasks of one or more items on `streams` threads, by default one per CPU.

A thread takes an item through two steps: `prepare`, which uses one CPU, and `compute`, which can use all of them. It
gets all CPUs if no other item is running or waiting; otherwise items run side by side on one CPU each. So a single
caller gets the lowest latency, many get the highest throughput, and there are never more busy threads than CPUs.

The number of waiting items is limited. Tasks take turns item by item, so a long task delays a short one only a little.
A task whose caller was cancelled, or whose deadline has passed, is skipped. An item whose `prepare` takes long can step
aside: the next item gets its CPU, and it goes on in the slow lane.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from serve.errors import DeadlinePassed, NotReady
from serve.scheduling.queue_limit import QueueLimit
from serve.scheduling.slow_lane import SlowLane
from serve.scheduling.task import Outcome, Task, without_frames

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")


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
        self.limit = QueueLimit(max_queue, streams, item_seconds)
        self._tasks: deque[Task] = deque()
        self.depth = 0  # items that wait for a thread
        self._busy = 0
        self._one_has_all_cpus = self._closed = False
        self.done = 0  # items completed so far, whatever their outcome
        self._lock = threading.RLock()  # entering it takes half as long as entering the condition
        self._changed = threading.Condition(self._lock)
        self._wakes_few = True  # whether any idle thread may take a new item
        self._streams = streams
        self._lane = SlowLane(max(1, streams // 2), max_queue)
        self._aside = self._returning = 0  # threads that have stepped aside, and those of them that wait for a CPU
        self._own = threading.local()  # of a thread: task, whether it stepped aside, when it got a place in the lane
        self._threads: list[threading.Thread] = []
        for _ in range(streams):
            self._start_thread()

    async def run(self, items: Sequence[Item], deadline: float) -> list[Outcome[Result]]:
        """Returns the items' outcomes, in order. Cancelling the caller discards the items that have not begun.

        Args:
            items: at least one.
            deadline: on the clock of `time.monotonic`.

        Raises:
            QueueFull: there is no room for all items; raised at once.
            DeadlinePassed: an item's turn came after the deadline. A caller that waits no longer than that cancels.
            NotReady: the scheduler was closed first.
        """
        task = Task(items, deadline)
        with self._lock:
            self.require_room(len(items))
            self._tasks.append(task)
            self.depth += len(items)
            self._changed.notify(len(items) if self._wakes_few else len(self._threads))
        try:
            return await task.done
        finally:
            if task.missing:
                self._abandon(task)

    def _abandon(self, task: Task) -> None:
        self._lane.abandon(task)
        with self._changed:
            if task.waiting:
                self._tasks.remove(task)
                self.depth -= task.discard()

    def require_room(self, count: int = 1) -> None:
        """Raises the `QueueFull` or `NotReady` that `run` would raise now for `count` items."""
        if self._closed:
            raise NotReady("The server is shutting down.")
        self.limit.require_room(count, self.depth, self._busy)

    def is_alone(self) -> bool:
        """Returns whether one item at most has a CPU and none waits."""
        return self._busy <= 1 and not self._tasks

    def close(self, seconds: float) -> None:
        """Ends the threads, each after its current item, and tasks that still wait with `NotReady`.

        A thread that takes more than so many seconds is left running.
        """
        until = time.monotonic() + seconds
        with self._changed:
            self._closed = True
            for task in self._tasks:
                task.settle(NotReady("The server is shutting down and has not begun this request."))
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def step_aside(self, stop: Callable[[], None] | None) -> bool:
        """Gives the calling thread's CPU to another item until `prepare` returns; `prepare` calls it if it takes long.

        Args:
            stop: called if the item has to wait for a place in the slow lane; ends the work on it, which is then done
                again. None for an item that needs no place.

        Returns:
            Whether it stepped aside: an item does so once, and only on a thread of this scheduler. Raises `QueueFull`.
        """
        task: Task | None = getattr(self._own, "task", None)
        if task is None:
            return False
        has_place = stop is None or self._lane.enter(task)
        self._own.task, self._own.aside = None, True
        with self._changed:
            self._busy -= 1
            self._aside += 1
            if len(self._threads) < self._streams + self._aside:
                with contextlib.suppress(RuntimeError):  # without a thread, other items wait for this one
                    self._start_thread()
            self._changed.notify_all()
        if stop and not has_place:
            stop()
            self._lane.wait(task)
        self._own.place_since = time.monotonic() if stop else None
        return True

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"stream-{len(self._threads)}", daemon=True)
        thread.start()
        self._threads.append(thread)

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
            prepared = self._prepare_item(task, item)
            all_cpus = self._claim_all_cpus()
            outcome = Outcome(queued, self._compute(prepared, all_cpus))
        except BaseException as error:  # any error is the outcome of this item alone
            outcome = Outcome(queued, error=without_frames(error))
        task.outcomes[position] = outcome
        untypical = all_cpus or self._own.aside or outcome.error
        self._finish(task, None if untypical else time.monotonic() - started)
        return True

    def _prepare_item(self, task: Task, item: Any) -> Any:
        self._own.task, self._own.aside, self._own.place_since = task, False, None
        try:
            return self._prepare(item)
        finally:
            self._own.task = None
            if self._own.place_since is not None:
                self._lane.leave(time.monotonic() - self._own.place_since)
            if self._own.aside:
                self._come_back()

    def _come_back(self) -> None:
        """Waits for a CPU, ahead of the items that wait."""
        with self._changed:
            self._returning += 1
            while self._one_has_all_cpus or self._busy >= self._streams:
                self._changed.wait()
            self._returning -= 1
            self._aside -= 1
            self._busy += 1
            self._changed.notify_all()

    def _take(self) -> tuple[Task, int, Any] | None:
        """Waits for an item and a free CPU; None once the scheduler is closed."""
        with self._changed:
            while not self._closed:
                if not self._may_take():
                    self._changed.wait()
                elif taken := self._pop():
                    self._busy += 1
                    return taken
        return None

    def _may_take(self) -> bool:
        held = self._one_has_all_cpus or self._returning or self._busy >= self._streams
        return bool(self._tasks) and not held

    def _pop(self) -> tuple[Task, int, Any] | None:
        """Takes an item of the task whose turn it is; None, and the task ends, if its deadline has passed."""
        task = self._tasks.popleft()
        if task.deadline <= time.monotonic():
            self.depth -= task.discard()
            task.settle(DeadlinePassed.before_answer())
            return None
        position, item = task.waiting.popleft()
        self.depth -= 1
        if task.waiting:
            self._tasks.append(task)  # behind the others, because tasks take turns
        return task, position, item

    def _claim_all_cpus(self) -> bool:
        """Gives the calling thread all CPUs until `_finish` if no other item runs or waits; returns whether it did."""
        with self._changed:
            self._one_has_all_cpus = self.is_alone()
            return self._one_has_all_cpus

    def _finish(self, task: Task, seconds: float | None) -> None:
        """Frees the thread's CPU, then wakes the task's caller after its last item. seconds: on one CPU, if known."""
        with self._changed:
            self._busy -= 1
            self.done += 1
            if seconds is not None:
                self.limit.record(seconds)
            if self._returning or (self._one_has_all_cpus and self._tasks):  # waking idle threads takes time
                self._changed.notify_all()
            self._one_has_all_cpus = False
            task.missing -= 1
            if task.missing:
                return
        task.settle()
