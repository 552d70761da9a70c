"""Spreads computation on the event loop over its iterations, so that many requests at once don't delay a probe."""

import asyncio
from collections import deque
from typing import Final

# Once an iteration of the event loop has taken this long, further work waits for a later iteration.
_SECONDS: Final = 0.005


class Pacer:
    """Admits computation on one event loop, in order of arrival, for a few milliseconds per iteration."""

    def __init__(self) -> None:
        self._began: float | None = None  # when the first caller in this iteration was admitted
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait_for_turn(self) -> None:
        """Returns when the caller may compute: at once, unless others have used up this iteration."""
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
            if not turn.done():  # its request may have been cancelled
                turn.set_result(None)
                self._began = loop.time()
                loop.call_soon(self._next, loop)
                return
