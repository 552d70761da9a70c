"""Starting → ready → draining: whether requests are accepted, and how long those in flight may take."""

import asyncio

from serve.errors import NotReady
from serve.scheduling.in_flight import InFlightRequest


class Lifecycle:
    """The state of one server. Only `draining` and `begin_drain` may be used outside its event loop.

    One timer ends all requests that are late. It is set for the earliest deadline, and seldom moved, because most
    requests end long before theirs.

    Args:
        grace_seconds: how long requests in flight may go on once draining has begun.

    Attributes:
        draining: whether the server is shutting down.
    """

    def __init__(self, grace_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self._started = False
        self.draining = False
        self._in_flight: set[InFlightRequest] = set()
        self._idle = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

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
            self.watch(request.due())
        self._idle.clear()
        if self._in_flight:
            await self._idle.wait()

    def cancel_all(self) -> None:
        """Ends all requests in flight with `NotReady`."""
        for request in self._in_flight:
            request.end_at_shutdown()

    def require_ready(self) -> None:
        """Raises `NotReady` unless requests are accepted."""
        if self.draining:
            raise NotReady("The server is not ready: it is shutting down.")
        if not self._started:
            raise NotReady("The server is not ready: its model is not loaded yet.")

    def add(self, request: InFlightRequest) -> None:
        """Counts an accepted request as in flight, so that draining waits for it."""
        self._in_flight.add(request)
        self.watch(request.due())

    def remove(self, request: InFlightRequest) -> None:
        """Removes a request that has ended."""
        self._in_flight.discard(request)
        if self.draining and not self._in_flight:
            self._idle.set()

    def watch(self, due: float) -> None:
        """Sees to it that requests late at `due` are ended then."""
        if self._timer is None or due < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_at(due, self._end_late)

    def _end_late(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for request in self._in_flight:
            if request.due() <= now:
                request.end_late()
            else:
                self.watch(request.due())
