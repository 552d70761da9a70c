"""Ends a request's work at its deadline, or as soon as its client disconnects."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from serve.errors import DeadlinePassed

T = TypeVar("T")


@contextlib.asynccontextmanager
async def until(deadline: float) -> AsyncIterator[None]:
    """Cancels the body of the `async with` block at a deadline.

    Args:
        deadline: seconds on the clock of `time.monotonic`.

    Raises:
        DeadlinePassed: the deadline came before the end of the block.
    """
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            yield
    except TimeoutError:
        raise DeadlinePassed.before_answer() from None


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """Awaits `work`, and cancels it if the client disconnects first.

    Raises:
        ClientDisconnect: the client disconnected before `work` was done.
    """
    working = asyncio.current_task()
    watching = asyncio.ensure_future(_disconnected(receive))
    over = False

    def cancel_work(_: asyncio.Future[None]) -> None:
        if working is not None and not over:
            working.cancel()

    watching.add_done_callback(cancel_work)
    try:
        return await work
    except asyncio.CancelledError:
        if working is None or not watching.done():
            raise  # cancelled from elsewhere
        working.uncancel()
        raise ClientDisconnect from None
    finally:
        over = True
        watching.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
