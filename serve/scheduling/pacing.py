"""Spreads computation on the event loop over its iterations, so that many requests at once don't delay a probe."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")

# Computation of one iteration; once it is used up, further work waits for a later iteration.
_SECONDS: Final = 0.005


class Pacer:
    """Admits computation on one event loop, in order of arrival, for a few milliseconds per iteration.

    Attributes:
        exhausted: whether a caller has to wait for its turn.
    """

    def __init__(self) -> None:
        self._left = _SECONDS
        self.exhausted = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def spend(self, seconds: float) -> None:
        """Counts computation that a caller has just done."""
        self._left -= seconds
        if self._left <= 0 and not self.exhausted:
            self.exhausted = True
            asyncio.get_running_loop().call_soon(self._next)

    async def run(self, compute: Callable[..., T], *arguments: Any) -> T:
        """Calls `compute` in its turn."""
        await self.wait_for_turn()
        began = time.perf_counter()
        try:
            return compute(*arguments)
        finally:
            self.spend(time.perf_counter() - began)

    async def wait_for_turn(self) -> None:
        """Returns when the caller may compute: at once, unless this iteration's time is used up."""
        if self.exhausted:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn

    def _next(self) -> None:
        """Begins an iteration: admits the caller that has waited longest, or all further ones if none has."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its request may have been cancelled
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._left, self.exhausted = _SECONDS, False
