"""uvicorn on a listening socket: speaks HTTP until a signal, then drains.

No error leaves this module.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import uvicorn

from serve.config.settings import Config
from serve.observability.metrics import Metrics
from serve.scheduling.lifecycle import Lifecycle
from serve.server.connections import ACCEPTED_AT_ONCE, ConnectionLimiter
from serve.server.signals import HANGING_SECONDS, end_within, leave_on_signals, on_stop
from serve.server.turns import TakingTurns, Turns

# How long the event loop waits for Python's lock where a thread has it, which a probe needs a dozen times: by default
# that makes a tenth of a second.
_SWITCH_SECONDS: Final = 0.001
# Connections that the system keeps until they are accepted; it drops the next ones, which try again after a second.
_BACKLOG: Final = 4096
# How long connections may take to close, once all uploads are answered: within the grace period with what it keeps.
_CLOSING_SECONDS: Final = 1


def http_server(
    app: Any, config: Config, lifecycle: Lifecycle, metrics: Metrics, speak: Callable[[], None]
) -> uvicorn.Server:
    """A server for `app`, to be run on a socket; once it has started, its event loop calls `speak` each second."""

    class Bounded(TakingTurns):
        all_connections = ConnectionLimiter(config.max_connections)
        head_seconds = config.head_timeout_ms / 1000
        body_seconds = config.body_timeout_ms / 1000
        turns = Turns()

    Bounded.metrics = metrics

    sys.setswitchinterval(_SWITCH_SECONDS)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of what clients do, and so could they
    settings = uvicorn.Config(
        app,
        http=Bounded,
        ws="none",
        lifespan="off",
        loop="asyncio",
        backlog=ACCEPTED_AT_ONCE,  # asyncio's meaning, besides the system's
        log_config=None,
        access_log=False,  # middleware.py writes it, with the request id
        server_header=False,
        proxy_headers=False,  # or any client of this machine could forge its address in the log
        timeout_graceful_shutdown=_CLOSING_SECONDS,
        timeout_keep_alive=config.keep_alive_seconds,
    )
    return _DrainingServer(settings, lifecycle, speak, config.grace_seconds + HANGING_SECONDS)


class _DrainingServer(uvicorn.Server):
    """uvicorn stops listening at once when told to stop; this one first answers what it has accepted.

    Until then it goes on listening, so that probes and new requests get their 503 rather than a closed port. And what
    fails as the application starts leaves `run`, where uvicorn would log it and come to an end like any other.
    """

    def __init__(
        self, settings: uvicorn.Config, lifecycle: Lifecycle, speak: Callable[[], None], most_seconds: float
    ) -> None:
        super().__init__(settings)
        self._lifecycle = lifecycle
        self._speak = speak
        self._most_seconds = most_seconds
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Until a signal of `STOPPING`, and all accepted requests are answered."""
        self._loop = asyncio.get_running_loop()
        app: Any = self.config.app
        async with app.router.lifespan_context(app):
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, with more room for connections not yet accepted than asyncio accepts in a turn of its loop."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Those that end the server, of which uvicorn knows two."""
        on_stop(self.handle_exit)
        try:
            yield
        finally:
            leave_on_signals()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if counter % 10 == 0:
            self._speak()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain, then stop; a second Ctrl-C waits for nobody."""
        if self._lifecycle.begin_drain():
            end_within(self._most_seconds)
            self._loop.call_soon_threadsafe(self._start_draining)
        elif sig == signal.SIGINT:
            self._loop.call_soon_threadsafe(self._lifecycle.end_now)

    def _start_draining(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self._lifecycle.drain()
        self.should_exit = True
