"""Reads and writes large messages on a thread of its own, so that they delay neither the event loop nor inference.

The thread starts with the server, so a system without free threads fails the start and not a later request.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from serve.errors import QueueFull

T = TypeVar("T")


class MessageThread:
    """One thread for messages, of which at most `max_queue` may wait or be read."""

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self._waiting = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="messages")
        self._thread.submit(int)  # starts the thread

    def run_limited(self, function: Callable[..., T], *arguments: Any) -> Coroutine[Any, Any, T]:
        """Calls `function` as `run` does, but within the limit.

        Raises:
            QueueFull: too many messages are waiting.
        """
        if self._waiting >= self._max_queue:
            raise QueueFull(
                f"There is no room for the request: {self._waiting} wait to be read and the limit is "
                f"{self._max_queue}; try again in a moment."
            )
        return self.run(function, *arguments)

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls `function` on the thread, regardless of the limit; a cancelled call is skipped if it has not begun.

        Raises:
            Exception: whatever `function` raises.
        """
        self._waiting += 1
        work = [partial(function, *arguments)]
        del arguments
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work.pop()())
        finally:
            self._waiting -= 1
            work.clear()  # or the thread's queue would keep a cancelled message in memory until its turn

    def do(self, chore: Callable[[], None]) -> None:
        """Queues a chore for the thread, regardless of the limit."""
        self._thread.submit(chore)

    def close(self) -> None:
        """Ends the thread after the current message."""
        self._thread.shutdown(wait=False, cancel_futures=True)
