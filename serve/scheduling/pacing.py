"""Costly work on the event loop, some milliseconds a turn of it, so that no crowd of requests keeps a probe waiting."""

import asyncio
from collections import deque
from typing import Final

# What a turn of the event loop may take before the next piece of work has to wait for another turn.
_SECONDS: Final = 0.005


class Pacer:
    """Turns of one event loop, given to those who compute on it in the order in which they ask."""

    def __init__(self) -> None:
        self._began: float | None = None  # when the first one in this turn asked
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Return where the caller may compute: at once, unless others have taken this turn of the event loop."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._began is None:
            self._began = now
            loop.call_soon(self._next, loop)
        elif self._waiting or now - self._began >= _SECONDS:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._began = None
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its request may have ended
                turn.set_result(None)
                self._began = loop.time()
                loop.call_soon(self._next, loop)
                return
