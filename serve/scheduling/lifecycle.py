"""Starting → ready → draining: whether requests are accepted, and how long those in flight may take once draining."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from serve.errors import NotReady

# Share of the grace period for uploads that are still arriving. The rest is kept for classifying them, and is never
# shorter than it takes to refuse a client that goes on sending.
_UPLOAD_SHARE: Final = 0.5
_REFUSAL_SECONDS: Final = 3.0
# Part of the grace period that is kept for sending the last responses.
_RESPONSE_SECONDS: Final = 1.5


class InFlightRequest:
    """One accepted request, from its head to its response.

    Attributes:
        timeout: cancels the request when it expires.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.timeout = asyncio.timeout(None)
        self._grace = grace_seconds
        self._uploading = True
        self._draining_since: float | None = None

    def body_received(self) -> None:
        """Records that the body has been read completely; the rest of the time is the server's own."""
        self._uploading = False
        if self._draining_since is not None:
            self.limit_draining(self._draining_since)

    def limit_draining(self, since: float) -> None:
        """Limits the time that is left, with draining begun at `since` on the event loop's clock."""
        self._draining_since = since
        if self._uploading:
            seconds = min(self._grace * _UPLOAD_SHARE, self._grace - _REFUSAL_SECONDS)
        else:
            seconds = self._grace - _RESPONSE_SECONDS
        self.timeout.reschedule(since + max(0.0, seconds))


class Lifecycle:
    """The state of one server. Only `draining` and `begin_drain` may be used outside its event loop.

    Args:
        grace_seconds: how long requests in flight may go on once draining has begun.

    Attributes:
        draining: whether the server is shutting down.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace = grace_seconds
        self._started = False
        self.draining = False
        self._in_flight: set[InFlightRequest] = set()
        self._idle = asyncio.Event()

    def start(self) -> None:
        """Accepts requests from now on; call it once the model is loaded and warm."""
        self._started = True

    def begin_drain(self) -> bool:
        """Stops accepting requests; returns whether this was the first call. Safe to call from a signal handler."""
        first = not self.draining
        self.draining = True
        return first

    async def drain(self) -> None:
        """Waits until the requests in flight are answered; those that take too long end with `NotReady`."""
        self.begin_drain()
        now = asyncio.get_running_loop().time()
        for request in self._in_flight:
            request.limit_draining(now)
        self._idle.clear()
        if self._in_flight:
            await self._idle.wait()

    def cancel_all(self) -> None:
        """Ends all requests in flight with `NotReady`."""
        now = asyncio.get_running_loop().time()
        for request in self._in_flight:
            request.timeout.reschedule(now)

    def require_ready(self) -> None:
        """Raises `NotReady` unless requests are accepted."""
        if self.draining:
            raise NotReady("The server is not ready: it is shutting down.")
        if not self._started:
            raise NotReady("The server is not ready: its model is not loaded yet.")

    @asynccontextmanager
    async def track(self) -> AsyncIterator[InFlightRequest]:
        """Counts a request as in flight during the `async with` block; draining waits for it.

        Raises:
            NotReady: the server is not accepting requests, or could not wait for this one any longer.
        """
        self.require_ready()
        request = InFlightRequest(self._grace)
        try:
            async with request.timeout:
                self._in_flight.add(request)
                try:
                    yield request
                finally:
                    self._in_flight.discard(request)
                    if not self._in_flight:
                        self._idle.set()
        except TimeoutError:
            raise NotReady("The server is shutting down and could not wait for this request any longer.") from None
