"""uvicorn on a listening socket: serves until a signal, then answers the requests in flight."""

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
from serve.server.connections import ACCEPTS_PER_ITERATION, ConnectionLimiter, KeptAlive
from serve.server.read_budget import BudgetedProtocol, ReadBudget
from serve.server.signals import EXIT_MARGIN_SECONDS, exit_on_signals, handle_stop_signals, kill_self_after

# How long the event loop waits before a thread has to release the GIL. A probe waits for it a dozen times, so Python's
# default of 5 ms would add up to a tenth of a second.
_SWITCH_SECONDS: Final = 0.001
# Connections that the kernel queues until they are accepted; it drops further ones, whose clients retry after a second.
_BACKLOG: Final = 4096
# How long connections may take to close once all uploads are answered; it fits into what the lifecycle keeps of the
# grace period for sending responses.
_CLOSING_SECONDS: Final = 1


def http_server(
    app: Any, config: Config, lifecycle: Lifecycle, metrics: Metrics, heartbeat: Callable[[], None]
) -> uvicorn.Server:
    """Returns a server for `app`, ready to run on a socket. While it runs, it calls `heartbeat` every second."""

    class Protocol(BudgetedProtocol):
        all_connections = ConnectionLimiter(config.max_connections)
        kept_alive = KeptAlive(config.keep_alive_seconds)
        head_seconds = config.head_timeout_ms / 1000
        body_seconds = config.body_timeout_ms / 1000
        read_budget = ReadBudget()

    Protocol.metrics = metrics

    sys.setswitchinterval(_SWITCH_SECONDS)
    # Its warnings are about malformed requests, so clients could fill the log with them.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    settings = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        backlog=ACCEPTS_PER_ITERATION,  # for asyncio, also the number of connections accepted per iteration
        log_config=None,
        access_log=False,  # written by api/boundary.py, with the request id
        server_header=False,
        proxy_headers=False,  # or any local client could forge its address in the log
        timeout_graceful_shutdown=_CLOSING_SECONDS,
    )
    return _DrainingServer(settings, lifecycle, heartbeat, config.grace_seconds + EXIT_MARGIN_SECONDS)


class _DrainingServer(uvicorn.Server):
    """A uvicorn server that answers accepted requests before it stops listening.

    While it drains, probes and new requests get a 503 rather than a closed port. Errors during the application's start
    are raised by `run`; uvicorn's own server would log them and end normally.
    """

    def __init__(
        self, settings: uvicorn.Config, lifecycle: Lifecycle, heartbeat: Callable[[], None], max_exit_seconds: float
    ) -> None:
        super().__init__(settings)
        self._lifecycle = lifecycle
        self._heartbeat = heartbeat
        self._max_exit_seconds = max_exit_seconds
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until one of `STOP_SIGNALS`, and then until all accepted requests are answered."""
        self._loop = asyncio.get_running_loop()
        app: Any = self.config.app
        async with app.router.lifespan_context(app):
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts listening, with a longer kernel queue than the number of connections asyncio accepts per iteration."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles all of `STOP_SIGNALS`; uvicorn handles only two of them."""
        handle_stop_signals(self.handle_exit)
        try:
            yield
        finally:
            exit_on_signals()

    async def on_tick(self, counter: int) -> bool:
        """Sends a heartbeat every second; uvicorn calls it ten times a second."""
        if counter % 10 == 0:
            self._heartbeat()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drains, then stops; SIGINT while draining cancels the requests in flight."""
        if self._lifecycle.begin_drain():
            kill_self_after(self._max_exit_seconds)
            self._loop.call_soon_threadsafe(self._start_draining)
        elif sig == signal.SIGINT:
            self._loop.call_soon_threadsafe(self._lifecycle.cancel_all)

    def _start_draining(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self._lifecycle.drain()
        self.should_exit = True
