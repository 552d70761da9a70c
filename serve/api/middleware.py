"""What every request passes through: request id, access log, origin check, unforeseen errors, clean endings.

Plain ASGI, so that nothing here depends on the web framework. No error leaves this module while an answer can still be
given: a defect becomes a 500 that carries the request id under which it was logged.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from serve.config.hosts import AllowedHosts, is_own_page
from serve.errors import ForeignHost, ForeignOrigin
from serve.observability.correlation import parse_traceparent, request_id_of
from serve.observability.metrics import Metrics
from serve.problems import problem, problem_of, refusal

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

access_log = logging.getLogger("serve.access")
error_log = logging.getLogger("serve.error")

# After an early refusal, what the client is still sending is read and dropped for a moment, because closing on unread
# bytes resets the connection and the client may lose the answer (RFC 9112, section 9.6).
_LINGER_SECONDS: Final = 2.0
_LINGER_SECONDS_WHEN_LEAVING: Final = 0.5
_LINGER_BYTES: Final = 64 * 2**20


class RequestLog:
    """Give each request an id, a line in the access log and a count, and turn a defect into a 500 problem.

    route_of: the template of the route that a request's scope is of. What others leave in the scope is noted: `stages`,
    seconds by stage; `answered`, when by the clock of `time.perf_counter`; `refused`, the status that was sent by
    someone else; and `request_id` is there for them.
    """

    def __init__(self, app: App, metrics: Metrics, route_of: Callable[[Scope], str]) -> None:
        self.app = app
        self.metrics = metrics
        self.route_of = route_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = scope.setdefault("request_id", request_id_of(scope["headers"]))
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
            error_log.exception("unforeseen error", extra={"fields": {"request_id": request_id}})
            if record["status"]:
                raise  # half an answer is out: only closing the connection tells the client
            await _send_defect(scope, stamping_send, request_id)
        finally:
            seconds = scope.get("answered", time.perf_counter()) - started
            record["status"] = scope.get("refused", record["status"])
            self.metrics.request_finished(self.route_of(scope), record["status"], seconds)
            _log_access(scope, request_id, record, seconds)


class LingeringClose:
    """Close connections that nothing more is to come from.

    Where an answer goes out before the request's body was read to its end, reading stops soon; where all of the body
    had come, the connection goes on. leaving: whether the server is about to end, so that clients do not send their
    next request to it.
    """

    def __init__(self, app: App, leaving: Callable[[], bool]) -> None:
        self.app = app
        self.leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        unread = _has_body(scope)
        sends = not _waits_for_continue(scope)  # its body, without having been told to go on

        async def watching_receive() -> Message:
            nonlocal unread, sends
            sends = True
            message = await receive()
            unread = unread and message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def closing_send(message: Message) -> None:
            if unread and message["type"] == "http.response.start" and sends:
                await _drop_rest(watching_receive, 0.0)  # what is there already
            if (unread or self.leaving()) and message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            if unread and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                scope["answered"] = time.perf_counter()  # what follows is for the client's sake alone
                if sends:
                    await _drop_rest(
                        watching_receive, _LINGER_SECONDS_WHEN_LEAVING if self.leaving() else _LINGER_SECONDS
                    )
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self.app(scope, watching_receive, closing_send)


class OriginGuard:
    """Refuse requests for a host that is not allowed, and what a browser sends for a page of another origin.

    hosts: those allowed. origins: other origins whose pages may use the server.
    """

    def __init__(self, app: App, metrics: Metrics, hosts: AllowedHosts, origins: tuple[str, ...]) -> None:
        self.app = app
        self.metrics = metrics
        self.hosts = hosts
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            await self.app(scope, receive, send)
            return
        self.metrics.request_rejected(refused)
        await _send_problem(scope, send, problem_of(refused))

    def _refusal(self, scope: Scope) -> ForeignHost | ForeignOrigin | None:
        host, origin = (_header(scope, name).decode("latin-1") for name in (b"host", b"origin"))
        if host not in self.hosts:
            return ForeignHost(f"The host {host[:100]!r} is not served here; --allowed-hosts lists those that are.")
        if not origin or origin in self.origins:
            return None
        site = _header(scope, b"sec-fetch-site").decode("latin-1")
        if is_own_page(origin, site, scope["scheme"], host):
            return None
        return ForeignOrigin(f"Requests from pages of {origin[:100]} are refused; --cors-origins lists those allowed.")


async def _drop_rest(receive: Receive, seconds: float) -> None:
    dropped = 0
    try:
        async with asyncio.timeout(seconds):
            while dropped < _LINGER_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
                dropped += len(message["body"])
    except TimeoutError:
        pass


async def _send_defect(scope: Scope, send: Send, request_id: str) -> None:
    detail = "The server failed on this request, which is a defect; its log has more under this request id."
    await _send_problem(scope, send, {**problem(500, "Internal Server Error", detail), "request_id": request_id})


async def _send_problem(scope: Scope, send: Send, content: dict[str, Any], *more: tuple[bytes, bytes]) -> None:
    body, media_type = refusal(scope["path"], content)
    headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": content["status"], "headers": headers})
    await send({"type": "http.response.body", "body": body})


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
    if "stages" in scope:
        fields["stages_ms"] = {stage: round(spent * 1000, 3) for stage, spent in scope["stages"].items()}
    access_log.info("%s %s %d", fields["method"], path, record["status"], extra={"fields": fields})


def api_key(scope: Scope) -> bytes | None:
    """The API key that a request carries, as `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
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
