"""Costly work on the event loop, one piece a turn of it, so that no crowd of cheap requests keeps a probe waiting."""

import asyncio
from collections import deque


class Pacer:
    """Turns of one event loop, given to those who compute on it in the order in which they ask."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Return in a turn of the event loop that nobody else computes in: at once, if nobody does in this one."""
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._next, loop)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its request may have ended
                turn.set_result(None)
                loop.call_soon(self._next, loop)
                return
        self._taken = False
