"""The boundary between ASGI and the handlers, which every request passes once.

It gives each request its record and checks where it comes from; errors become responses here, and nowhere else. A
defect is answered with a 500 that carries the request id under which it was logged.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.api.exchange import EXCHANGE, Exchange
from serve.api.responses import error_response
from serve.config.hosts import AllowedHosts, is_same_origin
from serve.errors import ForeignHost, ForeignOrigin, InternalError, RequestError
from serve.observability.correlation import parse_traceparent
from serve.observability.metrics import NO_ROUTE, Metrics
from serve.observability.record import CLIENT_DISCONNECTED
from serve.scheduling.lifecycle import Lifecycle
from serve.scheduling.task import without_frames

access_log = logging.getLogger("serve.access")
error_log = logging.getLogger("serve.error")


class OriginGuard:
    """Decides whether a request may come from where it does.

    Args:
        hosts: the hosts that are served.
        origins: other origins whose pages may use the server.
    """

    def __init__(self, hosts: AllowedHosts, origins: tuple[str, ...]) -> None:
        self.hosts = hosts
        self.origins = origins

    def refusal(self, exchange: Exchange) -> ForeignHost | ForeignOrigin | None:
        """Returns the error of a request for a host that is not served, or from a page of another origin."""
        host = exchange.header(b"host")
        if host not in self.hosts:
            return ForeignHost(f"The host {host[:100]!r} is not served here; --allowed-hosts lists those that are.")
        if b"origin" not in exchange.headers:
            return None
        origin, site = exchange.header(b"origin"), exchange.header(b"sec-fetch-site")
        if origin and origin not in self.origins and not is_same_origin(origin, site, exchange.scope["scheme"], host):
            return ForeignOrigin(
                f"Pages of {origin[:100]!r} may not use this server; --cors-origins lists those that may."
            )
        return None


class Boundary:
    """The ASGI application.

    Args:
        router: the routes, which raise `RequestError`.
        guard: of the requests' origins.
        metrics: where requests are counted.
        lifecycle: tells whether the server is shutting down.
        with_cors: wraps the application in Starlette's CORS middleware, if other origins are allowed.
    """

    def __init__(
        self,
        router: Router,
        guard: OriginGuard,
        metrics: Metrics,
        lifecycle: Lifecycle,
        with_cors: Callable[[ASGIApp], CORSMiddleware] | None,
    ) -> None:
        self.router = router
        self.lifecycle = lifecycle
        self._guard = guard
        self._metrics = metrics
        self._app: ASGIApp = with_cors(self._respond) if with_cors else self._respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.router(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self.lifecycle)
        record = exchange.record
        self._metrics.request_started()
        try:
            if foreign := self._guard.refusal(exchange):
                await _refuse(exchange, foreign, exchange.send)
            else:
                await self._app(scope, receive, exchange.send)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not record.closed or task is None or task.uncancel():
                raise
        finally:
            seconds = time.perf_counter() - record.started
            self._metrics.request_finished(exchange.route or self._template(scope), record, seconds)
            _log_access(exchange, seconds)
            del scope[EXCHANGE]  # ends the cycle of references, so that request and body are freed at once

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the handler, and turns its error into a response."""
        exchange: Exchange = scope[EXCHANGE]
        record = exchange.record
        try:
            await self.router(scope, receive, send)
        except RequestError as error:
            await _refuse(exchange, error, send)
        except ClientDisconnect:
            record.close(CLIENT_DISCONNECTED)
        except Exception:
            error_log.exception("unexpected error", extra={"fields": {"request_id": record.request_id}})
            if record.status:
                raise  # part of the response is sent: only closing the connection tells the client
            defect = "The server failed on this request, which is a defect; its log has more under this request id."
            await _refuse(exchange, InternalError(defect), send, request_id=record.request_id)

    def _template(self, scope: Scope) -> str:
        """Returns the template of the route of a request that was refused before it was routed."""
        matching = (route.path for route in self.router.routes if route.matches(scope)[0] is not Match.NONE)  # type: ignore[attr-defined]
        return next(matching, NO_ROUTE)


async def _refuse(exchange: Exchange, error: RequestError, send: Send, **members: str) -> None:
    response = error_response(exchange, without_frames(error), None, **members)
    await response(exchange.scope, exchange.next_chunk, send)  # type: ignore[arg-type]  # it receives nothing


def _log_access(exchange: Exchange, seconds: float) -> None:
    record, scope = exchange.record, exchange.scope
    # raw_path is still percent-encoded, so a path cannot break or forge a line
    path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    client = scope.get("client")
    fields = {
        "request_id": record.request_id,
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": path,
        "status": record.status,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "ms": round(seconds * 1e5) / 100,
    }
    if b"traceparent" in exchange.headers:
        fields |= parse_traceparent(exchange.header(b"traceparent"))
    if record.reason is not None:
        fields["reason"] = record.reason
    if record.stages is not None:
        fields["stages_ms"] = {stage: round(spent * 1e6) / 1000 for stage, spent in record.stages.items()}
    access_log.info("%s %s %d", scope["method"], path, record.status, extra={"fields": fields})
