"""The HTTP application: which path leads to which handler, through what, and what becomes of errors.

Domain errors become problems by the table in `problems.py`.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ExceptionHandler, Receive, Scope, Send

from serve import __version__
from serve.api.api_keys import KeyFile
from serve.api.handlers import Server
from serve.api.middleware import LingeringClose, OriginGuard, RequestLog, api_key
from serve.api.v2.handlers import Handler, InferenceServer
from serve.api.v2.messages import LENGTH_HEADER
from serve.config.hosts import AllowedHosts
from serve.config.settings import Config
from serve.errors import RequestError, Unauthorized
from serve.model.classifier import Classifier
from serve.observability.metrics import NO_ROUTE, Metrics
from serve.problems import problem, problem_of, refusal, retry_after
from serve.scheduling.lifecycle import Lifecycle

# Raises `Unauthorized` unless a key, if there is one, is accepted.
Require = Callable[[bytes | None], None]


def metrics_of(classifier: Classifier) -> Metrics:
    """Fresh metrics, which say what is being served."""
    variant = str(classifier.card["variant"])
    return Metrics({"version": __version__, "model": classifier.model.name, "variant": variant})


class GuardedRoute(Route):
    """Starlette's, which asks for an API key where `require` is given: it raises `Unauthorized` for one not accepted.

    No path with control characters matches; Starlette's regular expressions overlook a newline at the end of one.
    """

    def __init__(self, path: str, endpoint: Handler, methods: Sequence[str], require: Require | None = None) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.require = require

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if scope.get("path", "").isprintable() else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.require is not None:
            self.require(api_key(scope))
        await super().handle(scope, receive, send)


class Cors(CORSMiddleware):
    """Starlette's, but that what it refuses gets a problem too."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        return answer if answer.status_code == 200 else _RefusedPreflight(answer)


class _RefusedPreflight(Response):
    """The same refusal, with the headers that browsers go by, in the form that errors have at its path."""

    def __init__(self, plain: Response) -> None:
        super().__init__()
        self._what = bytes(plain.body).decode().removeprefix("Disallowed CORS ")
        self._kept = {name: value for name, value in plain.headers.items() if not name.startswith("content-")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        content = problem(400, "Bad Request", f"What the preflight asks for is not allowed: {self._what}.")
        body, media_type = refusal(scope["path"], content)
        await Response(body, 400, self._kept, media_type)(scope, receive, send)


def create_app(
    config: Config, classifier: Classifier, lifecycle: Lifecycle | None = None, metrics: Metrics | None = None
) -> Starlette:
    """The ASGI application over a loaded classifier; it answers 503 until its lifespan has started.

    lifecycle: for who wants to drain the application before ending it. metrics: for who counts in them too.
    """
    lifecycle = lifecycle or Lifecycle(config.grace_seconds)
    metrics = metrics or metrics_of(classifier)
    server = Server(config, classifier, lifecycle, metrics)
    inference = InferenceServer(server)
    require = KeyFile(config.api_keys_file).require if config.api_keys_file else None
    # Probes and the model card want no key where there are keys.
    open_routes = {
        "/": server.root,
        "/model": server.model,
        "/livez": server.livez,
        "/readyz": server.readyz,
        "/healthz": server.readyz,
        "/metrics": server.show_metrics,
        "/openapi.json": server.openapi,
        "/docs": server.docs,
        **inference.health(),
    }
    routes = [
        *(GuardedRoute(path, handler, ["GET"]) for path, handler in open_routes.items()),
        GuardedRoute("/upload", server.upload, ["POST"], require),
        *(GuardedRoute(path, handler, methods, require) for path, handler, methods in inference.routes()),
    ]
    cors = Middleware(
        Cors,
        allow_origins=config.cors_origins,
        allow_methods=["*"],  # which method fits which route is the router's to say, with a problem
        allow_headers=["*"],
        allow_private_network=True,  # a listed origin is listed wherever it and the server are
        expose_headers=["X-Request-ID", "Retry-After", "Server-Timing", LENGTH_HEADER],
    )
    metrics.declare_routes(route.path for route in routes)
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(RequestLog, metrics, route_of=_route_template(routes)),
            Middleware(LingeringClose, leaving=lambda: lifecycle.draining),
            Middleware(OriginGuard, metrics, AllowedHosts(config.allowed_hosts, config.host), config.cors_origins),
            *([cors] if config.cors_origins else []),
        ],
        exception_handlers={
            RequestError: cast(ExceptionHandler, _on_request_error(metrics)),
            HTTPException: cast(ExceptionHandler, _answer_http_exception),
            ClientDisconnect: _on_client_disconnect,
        },
        lifespan=server.lifespan,
    )
    app.state.lifecycle = lifecycle
    app.router.redirect_slashes = False  # a redirected upload would be sent twice; 404 says what is wrong
    return app


def _route_template(routes: Sequence[Route]) -> Callable[[Scope], str]:
    """Return a function from scope to the template of its route, also for requests refused before they were routed."""

    def name(scope: Scope) -> str:
        matching = (route for route in routes if route.matches(scope)[0] is not Match.NONE)
        found = scope.get("route") or next(matching, None)
        return found.path if found else NO_ROUTE

    return name


def _response(request: Request, content: dict[str, Any], headers: dict[str, str]) -> Response:
    body, media_type = refusal(request.scope["path"], content)
    return Response(body, content["status"], headers, media_type)


# Plain functions Starlette would run on a thread: three milliseconds each where the CPUs are busy.
def _on_request_error(metrics: Metrics) -> Callable[[Request, RequestError], Awaitable[Response]]:
    async def answer(request: Request, error: RequestError) -> Response:
        error.__traceback__ = None  # its frames hold the upload, and the error: a cycle of megabytes
        metrics.request_rejected(error)
        seconds = retry_after(error)
        headers = {} if seconds is None else {"Retry-After": str(seconds)}
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        return _response(request, problem_of(error), headers | request.scope.get("timing", {}))

    return answer


async def _answer_http_exception(request: Request, error: HTTPException) -> Response:
    """The framework's own refusals: no such route, or not with this method."""
    headers = dict(error.headers or {})
    if error.status_code == 405:
        detail = f"{request.method} is not allowed here; allowed: {headers['Allow']}. POST /upload classifies."
        return _response(request, problem(405, "Method Not Allowed", detail), headers)
    detail = "There is no such route; POST /upload classifies, and GET /docs tells the rest."
    return _response(request, problem(404, "Not Found", detail), headers)


async def _on_client_disconnect(request: Request, error: Exception) -> Response:
    """The client left before its request was complete; the status is for the log alone (nginx's 499)."""
    return Response(status_code=499)
