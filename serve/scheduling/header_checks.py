"""Header checks that may take long, on one thread of their own, so that neither the event loop nor the CPUs wait.

The thread is there from the start: a system that has no more threads to give fails it, and no request later.

Errors that leave here: `QueueFull`, besides what a check itself raises.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from serve.errors import QueueFull

T = TypeVar("T")


class Inspector:
    """One thread, which pictures wait for. max_queue: how many may, with the one it is at."""

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self._waiting = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inspect")
        self._thread.submit(int)  # which starts it

    def check(self, function: Callable[..., T], *arguments: Any) -> Coroutine[Any, Any, T]:
        """As `run`, where there is room for one more; raises `QueueFull` where there is not."""
        if self._waiting >= self._max_queue:
            raise QueueFull(
                f"There is no room for 1 picture: {self._waiting} wait for their headers to be checked and the limit "
                f"is {self._max_queue}; try again in a moment."
            )
        return self.run(function, *arguments)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """What `function` returns for these arguments; cancelling the caller skips it where it has not begun."""
        self._waiting += 1
        work = [partial(function, *arguments)]
        del arguments
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work.pop()())
        finally:
            self._waiting -= 1
            work.clear()  # the thread's queue would keep a cancelled picture until its turn

    def do(self, chore: Callable[[], None]) -> None:
        """Have the thread do something in passing."""
        self._thread.submit(chore)

    def close(self) -> None:
        """End the thread after what it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)
