"""A call of the scheduler: its waiting items, and their outcomes."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from serve.errors import RequestError
from serve.scheduling.loop_calls import LoopCalls

Result = TypeVar("Result")
Error = TypeVar("Error", bound=BaseException)


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
        return self.result  # type: ignore[return-value]  # there is a result or an error


def without_frames(error: Error) -> Error:
    """Drops the frames of an error of a request, which would hold the image in a cycle of references."""
    if isinstance(error, RequestError):
        error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


class Task:
    """One call of `run`: its waiting items, each with its position, and the outcomes so far."""

    def __init__(self, items: Sequence[Any], deadline: float) -> None:
        self.waiting = deque(enumerate(items))
        self.deadline = deadline
        self.submitted = time.monotonic()
        self.outcomes: list[Outcome[Any] | None] = [None] * len(items)
        self.missing = len(items)
        self.abandoned = False  # whether no one waits for the outcomes any more
        self._loop_calls = LoopCalls.of_running_loop()
        self.done: asyncio.Future[list[Outcome[Any]]] = asyncio.get_running_loop().create_future()

    def discard(self) -> int:
        """Drops the waiting items and returns how many they were."""
        count = len(self.waiting)
        self.waiting.clear()
        return count

    def settle(self, error: RequestError | None = None) -> None:
        """Wakes the caller of `run` with the outcomes or an error; called on any thread."""
        self._loop_calls.add(partial(self._settle, error))

    def _settle(self, error: RequestError | None) -> None:
        if self.done.done():  # its caller was cancelled
            return
        if error is None:
            self.done.set_result(self.outcomes)  # type: ignore[arg-type]  # each item has one
        else:
            self.done.set_exception(error)
