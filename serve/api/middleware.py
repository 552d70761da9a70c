"""ASGI middleware for every request: request id, access log, origin check, defects and lingering close.

A defect is answered with a 500 that carries the request id under which it was logged.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.responses import error_response
from serve.config.hosts import AllowedHosts, is_same_origin
from serve.errors import ForeignHost, ForeignOrigin, InternalError
from serve.observability.correlation import parse_traceparent, request_id_from
from serve.observability.metrics import Metrics

access_log = logging.getLogger("serve.access")
error_log = logging.getLogger("serve.error")

# After an early response, the rest of the request's body is read and dropped for a moment: closing a connection with
# unread bytes resets it, and the client may lose the response (RFC 9112, section 9.6).
_LINGER_SECONDS: Final = 2.0
_LINGER_SECONDS_DRAINING: Final = 0.5
_LINGER_BYTES: Final = 64 * 2**20


class RequestLog:
    """Gives each request an id, a line in the access log and a count, and turns a defect into a 500 problem.

    It puts `request_id` into the scope, and reads from it: `stages`, the seconds of each stage; `answered`, the time of
    the response by `time.perf_counter`; `reason`, why the request was refused; `refused`, the status that the protocol
    sent by itself.

    Args:
        app: the wrapped application.
        metrics: where requests are counted.
        route_of: returns the route's template for a scope.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, route_of: Callable[[Scope], str]) -> None:
        self.app = app
        self.metrics = metrics
        self.route_of = route_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = scope.setdefault("request_id", request_id_from(scope["headers"]))
        record = {"status": 0, "bytes_in": 0, "bytes_out": 0}

        async def counting_receive() -> Message:
            message = await receive()
            record["bytes_in"] += len(message.get("body", b""))
            return message

        async def stamping_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record["status"] = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode("ascii"))]}
            record["bytes_out"] += len(message.get("body", b""))
            await send(message)

        self.metrics.request_started()
        try:
            await self.app(scope, counting_receive, stamping_send)
        except Exception:
            error_log.exception("unexpected error", extra={"fields": {"request_id": request_id}})
            if record["status"]:
                raise  # part of the response is sent: only closing the connection tells the client
            defect = InternalError(
                "The server failed on this request, which is a defect; its log has more under this request id."
            )
            await error_response(scope, defect, request_id=request_id)(scope, receive, stamping_send)
        finally:
            seconds = scope.get("answered", time.perf_counter()) - started
            record["status"] = scope.get("refused", record["status"])
            self.metrics.request_finished(self.route_of(scope), record["status"], seconds, scope.get("reason"))
            _log_access(scope, request_id, record, seconds)


class LingeringClose:
    """Closes the connection after a response that was sent before its request's body had arrived, or at shutdown.

    The rest of the body is read for a short time first, so that the client gets the response.

    Args:
        app: the wrapped application.
        draining: whether the server is shutting down, so that clients send their next request elsewhere.
    """

    def __init__(self, app: ASGIApp, draining: Callable[[], bool]) -> None:
        self.app = app
        self.draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        unread = _has_body(scope)
        sends = not _waits_for_continue(scope)  # whether the client sends its body unasked

        async def watching_receive() -> Message:
            nonlocal unread, sends
            sends = True
            message = await receive()
            unread = unread and message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def closing_send(message: Message) -> None:
            if unread and message["type"] == "http.response.start" and sends:
                await _drop_rest(watching_receive, 0.0)  # what has arrived already
            if (unread or self.draining()) and message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            if unread and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                scope["answered"] = time.perf_counter()  # the lingering is not part of the response time
                if sends:
                    await _drop_rest(watching_receive, _LINGER_SECONDS_DRAINING if self.draining() else _LINGER_SECONDS)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self.app(scope, watching_receive, closing_send)


class OriginGuard:
    """Refuses requests for a host that is not allowed, and requests from web pages of another origin.

    Args:
        app: the wrapped application.
        hosts: the allowed hosts.
        origins: other origins whose pages may use the server.
    """

    def __init__(self, app: ASGIApp, hosts: AllowedHosts, origins: tuple[str, ...]) -> None:
        self.app = app
        self.hosts = hosts
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            await self.app(scope, receive, send)
            return
        await error_response(scope, refused)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ForeignHost | ForeignOrigin | None:
        host, origin = (_header(scope, name).decode("latin-1") for name in (b"host", b"origin"))
        if host not in self.hosts:
            return ForeignHost(f"The host {host[:100]!r} is not served here; --allowed-hosts lists those that are.")
        if not origin or origin in self.origins:
            return None
        site = _header(scope, b"sec-fetch-site").decode("latin-1")
        if is_same_origin(origin, site, scope["scheme"], host):
            return None
        return ForeignOrigin(f"Pages of {origin[:100]!r} may not use this server; --cors-origins lists those that may.")


async def _drop_rest(receive: Receive, seconds: float) -> None:
    dropped = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while dropped < _LINGER_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                dropped += len(message["body"])


def _log_access(scope: Scope, request_id: str, record: dict[str, int], seconds: float) -> None:
    # raw_path is still percent-encoded, so a path cannot break or forge a line
    path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    client = scope.get("client")
    fields = {
        "request_id": request_id,
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": path,
        **record,
        "ms": round(seconds * 1000, 2),
        **parse_traceparent(_header(scope, b"traceparent").decode("latin-1")),
    }
    if "reason" in scope:
        fields["reason"] = scope["reason"]
    if "stages" in scope:
        fields["stages_ms"] = {stage: round(spent * 1000, 3) for stage, spent in scope["stages"].items()}
    access_log.info("%s %s %d", fields["method"], path, record["status"], extra={"fields": fields})


def api_key(scope: Scope) -> bytes | None:
    """Returns the API key of a request, from `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
    scheme, _, token = _header(scope, b"authorization").partition(b" ")
    if scheme.lower() == b"bearer":
        return token.strip()
    return _header(scope, b"x-api-key") or None


def _has_body(scope: Scope) -> bool:
    return _header(scope, b"content-length") not in (b"", b"0") or bool(_header(scope, b"transfer-encoding"))


def _waits_for_continue(scope: Scope) -> bool:
    return scope["http_version"] != "1.0" and _header(scope, b"expect").lower() == b"100-continue"


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")
