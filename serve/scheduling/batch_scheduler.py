"""A scheduler whose threads compute several waiting items at once.

A thread takes an item, prepares it, and takes the next one as long as the batch has room and an item waits that came
before the batch began; then it computes all of them. Items are taken one at a time, so turns, deadlines and
cancellation hold for each, threads that are idle take items first, and an item whose `prepare` fails is not part of the
batch.

A batch does not wait to be filled, unless it is told to. Then one thread at a time waits, and the others leave new
items to it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from serve.errors import DeadlinePassed
from serve.scheduling.scheduler import Item, Prepared, Result, Scheduler
from serve.scheduling.task import Outcome, Task, without_frames

log = logging.getLogger("serve")


class BatchScheduler(Scheduler[Item, Prepared, Result]):
    """Threads that take items in turn and compute them in batches.

    Args:
        prepare: as for `Scheduler`.
        compute: as for `Scheduler`; computes an item alone if its batch failed.
        compute_batch: what `prepare` returned for each item, and whether all CPUs may be used → their results.
        max_batch: the most items in a batch.
        wait_seconds: how long the first item of a batch waits for more.
        settings: the other arguments of `Scheduler`.
    """

    def __init__(
        self,
        prepare: Callable[[Item], Prepared],
        compute: Callable[[Prepared, bool], Result],
        compute_batch: Callable[[Sequence[Prepared], bool], Sequence[Result]],
        *,
        max_batch: int,
        wait_seconds: float,
        **settings: Any,
    ) -> None:
        self._compute_batch = compute_batch
        self._max_batch = max_batch
        self._wait_seconds = wait_seconds
        self._collecting = False  # whether a thread waits for more items
        self._seen: set[str] = set()  # kinds of errors of batches that have been logged
        super().__init__(prepare, compute, **settings)
        self._wakes_few = not wait_seconds  # else the thread that waits for more items is the one to take them

    def step_aside(self, stop: Callable[[], None] | None) -> bool:
        """As in `Scheduler`; the items of the batch so far do not wait for the one that steps aside."""
        if getattr(self._own, "task", None) is not None:
            self._finish_batch(all_cpus=False)
        return super().step_aside(stop)

    def _work_on_next(self) -> bool:
        """Takes a batch through both steps; returns False once the scheduler is closed."""
        taken = self._take()
        if taken is None:
            return False
        # What is prepared and has no outcome: task, position, seconds in the queue, input, and of `prepare` the seconds
        # that it took, when it ended and whether it stepped aside.
        self._own.batch = []
        until = time.monotonic() + self._wait_seconds
        while taken:
            self._add_to_batch(*taken)
            until = min(until, taken[0].deadline - self.limit.item_seconds)  # so that it is not computed in vain
            del taken
            taken = self._take_more(until) if len(self._own.batch) < self._max_batch else None
        self._finish_batch(all_cpus=self._claim_all_cpus())
        with self._changed:
            self._busy -= 1
            if self._returning or (self._one_has_all_cpus and self._tasks):
                self._changed.notify_all()
            self._one_has_all_cpus = False
        return True

    def _may_take(self) -> bool:
        return not self._collecting and super()._may_take()

    def _take_more(self, until: float) -> tuple[Task, int, Any] | None:
        """Returns another item for the batch that came until then, or comes; None if the batch is to be computed."""
        with self._changed:
            while not self._closed and not self._returning:
                if self._tasks and self._tasks[0].submitted <= until:
                    if taken := self._pop():
                        return taken
                elif self._tasks or self._collecting or (left := until - time.monotonic()) <= 0:
                    break
                else:
                    self._collecting = True
                    self._changed.wait(left)
                    self._collecting = False
                    self._changed.notify_all()  # for what the batch has no room for
        return None

    def _add_to_batch(self, task: Task, position: int, item: Any) -> None:
        started = time.monotonic()
        queued = started - task.submitted
        try:
            prepared = self._prepare_item(task, item)
        except BaseException as error:  # any error is the outcome of this item alone
            self._settle_item(task, position, Outcome(queued, error=without_frames(error)), None)
        else:
            ended = time.monotonic()
            self._own.batch.append((task, position, queued, prepared, ended - started, ended, self._own.aside))

    def _finish_batch(self, all_cpus: bool) -> None:
        """Computes what is prepared and still wanted, and hands out the results."""
        prepared, self._own.batch = self._own.batch, []
        batch, started = [], time.monotonic()
        for each in prepared:
            task, position, queued = each[:3]
            if task.abandoned or task.deadline <= started:
                self._settle_item(task, position, Outcome(queued, error=DeadlinePassed.before_answer()), None)
            else:
                batch.append(each)
        if not batch:
            return
        outcomes = self._outcomes([item for _, _, _, item, *_ in batch], all_cpus)
        each_seconds = (time.monotonic() - started) / len(batch)
        for (task, position, queued, _, seconds, ended, aside), outcome in zip(batch, outcomes, strict=True):
            untypical = all_cpus or aside or outcome.error
            outcome = Outcome(queued + started - ended, outcome.result, outcome.error)
            self._settle_item(task, position, outcome, None if untypical else seconds + each_seconds)

    def _outcomes(self, prepared: list[Any], all_cpus: bool) -> list[Outcome[Any]]:
        """Returns an outcome for each input. If they cannot be computed together, each is computed alone."""
        try:
            if len(prepared) > 1:
                results = self._compute_batch(prepared, all_cpus)
                if len(results) != len(prepared):
                    raise ValueError(f"{len(results)} results for a batch of {len(prepared)}")
                return [Outcome(0.0, result) for result in results]
        except Exception as error:  # the items' own errors follow
            if (kind := type(error).__name__) not in self._seen:
                self._seen.add(kind)
                log.warning("a batch of %d images failed; each is computed alone: %r", len(prepared), error)
        return [self._outcome_alone(each, all_cpus) for each in prepared]

    def _outcome_alone(self, prepared: Any, all_cpus: bool) -> Outcome[Any]:
        try:
            return Outcome(0.0, self._compute(prepared, all_cpus))
        except BaseException as error:  # any error is the outcome of this item alone
            return Outcome(0.0, error=without_frames(error))

    def _settle_item(self, task: Task, position: int, outcome: Outcome[Any], seconds: float | None) -> None:
        """Hands out an item's outcome, and keeps the thread's CPU."""
        task.outcomes[position] = outcome
        with self._changed:
            self._busy += 1  # `_finish` frees one
            self._finish(task, seconds)
