"""Starting → ready → draining: whether a request may come in, and until when those that did may take. Knows no HTTP.

Errors that leave here: `NotReady`, for a request that comes too early or too late, or does not end in time.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from serve.errors import NotReady

# Of the grace period, how much uploads that are still arriving get; the rest is left to classify them, and never less
# than is needed to refuse a client that goes on sending.
_ARRIVING_SHARE: Final = 0.5
_REFUSING_SECONDS: Final = 3.0
# Of the grace period, how much is kept for sending the last answers.
_ANSWERING_SECONDS: Final = 1.5


class InFlightRequest:
    """One accepted request, from its headers to its answer."""

    def __init__(self, grace_seconds: float) -> None:
        self.scope = asyncio.timeout(None)
        self._grace = grace_seconds
        self._arriving = True
        self._drained_at: float | None = None

    def body_received(self) -> None:
        """The request's body is read to its end; what follows is the server's own time."""
        self._arriving = False
        if self._drained_at is not None:
            self.end_in_time(self._drained_at)

    def end_in_time(self, now: float) -> None:
        """Bound what is left of it: draining began `now`, on the event loop's clock."""
        self._drained_at = now
        if self._arriving:
            seconds = min(self._grace * _ARRIVING_SHARE, self._grace - _REFUSING_SECONDS)
        else:
            seconds = self._grace - _ANSWERING_SECONDS
        self.scope.reschedule(now + max(0.0, seconds))


class Lifecycle:
    """One server's state; all but `ready` and `begin_drain` belong to its event loop.

    grace_seconds: how long requests in flight may go on once draining has begun.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace = grace_seconds
        self._started = False
        self._draining = False
        self._visits: set[InFlightRequest] = set()
        self._empty = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return self._started and not self._draining

    @property
    def draining(self) -> bool:
        """Whether the end has begun."""
        return self._draining

    def start(self) -> None:
        """The model is loaded and warm: accept requests."""
        self._started = True

    def begin_drain(self) -> bool:
        """Accept no more requests, from this moment on; whether that is news. Safe to call from a signal handler."""
        news = not self._draining
        self._draining = True
        return news

    async def drain(self) -> None:
        """Wait until the requests in flight are answered; those that take too long end with `NotReady`."""
        self.begin_drain()
        now = asyncio.get_running_loop().time()
        for visit in self._visits:
            visit.end_in_time(now)
        self._empty.clear()
        if self._visits:
            await self._empty.wait()

    def end_now(self) -> None:
        """Let go of all requests in flight, which end with `NotReady`."""
        now = asyncio.get_running_loop().time()
        for visit in self._visits:
            visit.scope.reschedule(now)

    def require_ready(self) -> None:
        """Raise `NotReady` unless requests are accepted."""
        if self._draining:
            raise NotReady("The server is not ready: it is shutting down.")
        if not self._started:
            raise NotReady("The server is not ready: its model is not loaded yet.")

    @asynccontextmanager
    async def track(self) -> AsyncIterator[InFlightRequest]:
        """The length of one request, which draining waits for."""
        self.require_ready()
        visit = InFlightRequest(self._grace)
        try:
            async with visit.scope:
                self._visits.add(visit)
                try:
                    yield visit
                finally:
                    self._visits.discard(visit)
                    if not self._visits:
                        self._empty.set()
        except TimeoutError:
            raise NotReady("The server is shutting down and could not wait for this request any longer.") from None
