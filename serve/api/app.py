"""The ASGI application: its routes, its middleware and its responses to errors."""

from collections.abc import Callable, Sequence
from typing import cast

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
from serve.api.handlers import Handlers
from serve.api.middleware import LingeringClose, OriginGuard, RequestLog, api_key
from serve.api.pipeline import Pipeline
from serve.api.responses import error_response
from serve.api.v2.handlers import Handler, InferenceHandlers
from serve.api.v2.messages import LENGTH_HEADER
from serve.config.hosts import AllowedHosts
from serve.config.settings import Config
from serve.errors import BadPreflight, MethodNotAllowed, RequestError, UnknownRoute
from serve.imaging.pool import DEATHS
from serve.model.classifier import Classifier
from serve.observability.metrics import NO_ROUTE, Metrics
from serve.scheduling.lifecycle import Lifecycle

# Raises `Unauthorized` unless the key is accepted; None is a request without a key.
KeyCheck = Callable[[bytes | None], None]


def create_metrics(classifier: Classifier) -> Metrics:
    """Returns new metrics labelled with this release and this model, which count its decoders' deaths."""
    model, decoders = classifier.model, classifier.decoders
    build = {"version": __version__, "model": model.name, "variant": str(model.card["variant"])}
    metrics = Metrics({**build, "decoders": decoders.state})
    metrics.declare_deaths(DEATHS)
    decoders.on_death = metrics.count_death
    return metrics


class GuardedRoute(Route):
    """A route that checks the API key with `require`, if given, before its handler runs.

    It matches no path with control characters, because the regular expressions of Starlette's `Route` ignore a newline
    at the end.
    """

    def __init__(self, path: str, endpoint: Handler, methods: Sequence[str], require: KeyCheck | None = None) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.require = require

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if scope.get("path", "").isprintable() else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.require is not None:
            self.require(api_key(scope))
        await super().handle(scope, receive, send)


class Cors(CORSMiddleware):
    """Starlette's CORS middleware, with a problem as the response to a refused preflight."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        return response if response.status_code == 200 else _RefusedPreflight(response)


class _RefusedPreflight(Response):
    """Starlette's response to a refused preflight, with its headers and a problem as its body."""

    def __init__(self, plain: Response) -> None:
        super().__init__()
        self._refused = bytes(plain.body).decode().removeprefix("Disallowed CORS ")
        self._kept = {name: value for name, value in plain.headers.items() if not name.startswith("content-")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = BadPreflight(f"The CORS preflight was refused; not allowed: {self._refused}.")
        await error_response(scope, refused, self._kept)(scope, receive, send)


def create_app(
    config: Config, classifier: Classifier, lifecycle: Lifecycle | None = None, metrics: Metrics | None = None
) -> Starlette:
    """Returns the ASGI application of a loaded classifier.

    Until its lifespan has started, uploads, inference requests and readiness probes get 503.

    Args:
        config: the settings.
        classifier: the loaded model.
        lifecycle: for a caller that drains the application before it shuts down.
        metrics: for a caller that counts in the same metrics.
    """
    lifecycle = lifecycle or Lifecycle(config.grace_seconds)
    metrics = metrics or create_metrics(classifier)
    pipeline = Pipeline(config, classifier, lifecycle, metrics)
    handlers = Handlers(pipeline)
    inference = InferenceHandlers(pipeline)
    require = KeyFile(config.api_keys_file).require if config.api_keys_file else None
    # These routes need no API key.
    open_routes = {
        "/": handlers.root,
        "/model": handlers.model,
        "/livez": handlers.livez,
        "/readyz": handlers.readyz,
        "/healthz": handlers.readyz,
        "/metrics": handlers.metrics,
        "/openapi.json": handlers.openapi,
        "/docs": handlers.docs,
        **inference.health(),
    }
    routes = [
        *(GuardedRoute(path, handler, ["GET"]) for path, handler in open_routes.items()),
        GuardedRoute("/upload", handlers.upload, ["POST"], require),
        *(GuardedRoute(path, handler, methods, require) for path, handler, methods in inference.routes()),
    ]
    cors = Middleware(
        Cors,
        allow_origins=config.cors_origins,
        allow_methods=["*"],  # the router refuses methods that a route lacks, with a problem
        allow_headers=["*"],
        allow_private_network=True,  # a listed origin is allowed from any network to any network
        expose_headers=["X-Request-ID", "Retry-After", "Server-Timing", LENGTH_HEADER],
    )
    metrics.declare_routes(route.path for route in routes)
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(RequestLog, metrics, route_of=_route_template(routes)),
            Middleware(LingeringClose, draining=lambda: lifecycle.draining),
            Middleware(OriginGuard, AllowedHosts(config.allowed_hosts, config.host), config.cors_origins),
            *([cors] if config.cors_origins else []),
        ],
        exception_handlers={
            RequestError: cast(ExceptionHandler, _on_request_error),
            HTTPException: cast(ExceptionHandler, _on_http_exception),
            ClientDisconnect: _on_client_disconnect,
        },
        lifespan=pipeline.lifespan,
    )
    app.state.lifecycle = lifecycle
    app.router.redirect_slashes = False  # a redirected upload would be sent twice; a 404 is clearer
    return app


def _route_template(routes: Sequence[Route]) -> Callable[[Scope], str]:
    """Returns a function from a scope to its route's template, also for requests refused before routing."""

    def template(scope: Scope) -> str:
        matching = (route for route in routes if route.matches(scope)[0] is not Match.NONE)
        found = scope.get("route") or next(matching, None)
        return found.path if found else NO_ROUTE

    return template


# The error handlers are coroutines, because Starlette runs plain functions on a thread: 3 ms each on busy CPUs.
async def _on_request_error(request: Request, error: RequestError) -> Response:
    error.__traceback__ = None  # its frames refer to the upload and to the error: a cycle of megabytes
    return error_response(request.scope, error, request.scope.get("timing"))


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    """Responds to what the framework refuses: an unknown route, or a method that the route does not have."""
    headers = error.headers or {}
    refused: RequestError = UnknownRoute(
        "There is no such route; POST /upload classifies images, and GET /docs lists the other routes."
    )
    if error.status_code == 405:
        refused = MethodNotAllowed(
            f"{request.method} is not allowed here; allowed: {headers['Allow']}. POST /upload classifies images."
        )
    return error_response(request.scope, refused, headers)


async def _on_client_disconnect(request: Request, error: Exception) -> Response:
    """Gives the log a status, nginx's 499, for a client that disconnected before its response."""
    return Response(status_code=499)
