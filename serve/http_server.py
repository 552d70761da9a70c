"""uvicorn on a listening socket: speaks HTTP until a signal, then drains.

No error leaves this module.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import uvicorn

from serve.config import Config
from serve.connections import ACCEPTED_AT_ONCE, Connections
from serve.http_protocol import HttpProtocol
from serve.lifecycle import Lifecycle
from serve.metrics import Metrics

# How long connections may take to close, once all uploads are answered: within the grace period with what it keeps.
_CLOSING_SECONDS: Final = 1


def run(
    app: Callable[..., Any], config: Config, lifecycle: Lifecycle, metrics: Metrics, listener: socket.socket
) -> None:
    """Serve `app` on `listener` until SIGINT or SIGTERM and all accepted requests are answered."""

    class Bounded(HttpProtocol):
        all_connections = Connections(config.max_connections)
        head_seconds = config.head_timeout_ms / 1000
        body_seconds = config.body_timeout_ms / 1000

    Bounded.metrics = metrics

    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of what clients do, and so could they
    settings = uvicorn.Config(
        app,
        http=Bounded,
        ws="none",
        loop="asyncio",
        backlog=ACCEPTED_AT_ONCE,  # asyncio's meaning, besides the system's
        log_config=None,
        access_log=False,  # middleware.py writes it, with the request id
        server_header=False,
        proxy_headers=False,  # or any client of this machine could forge its address in the log
        timeout_graceful_shutdown=_CLOSING_SECONDS,
        timeout_keep_alive=config.keep_alive_seconds,
    )
    _DrainingServer(settings, lifecycle).run(sockets=[listener])


class _DrainingServer(uvicorn.Server):
    """uvicorn stops listening at once when told to stop; this one first answers what it has accepted.

    Until then it goes on listening, so that probes and new requests get their 503 rather than a closed port.
    """

    def __init__(self, settings: uvicorn.Config, lifecycle: Lifecycle) -> None:
        super().__init__(settings)
        self._lifecycle = lifecycle
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain, then stop; a second Ctrl-C waits for nobody."""
        again = not self._lifecycle.begin_drain()
        if self._loop is None:
            self.should_exit = True
        elif not again:
            self._loop.call_soon_threadsafe(self._start_draining)
        elif sig == signal.SIGINT:
            self._loop.call_soon_threadsafe(self._lifecycle.end_now)

    def _start_draining(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self._lifecycle.drain()
        self.should_exit = True
