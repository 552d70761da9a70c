"""The ASGI application: its routes, and what stands before them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Match, Route, Router
from starlette.types import Receive, Scope, Send

from serve import __version__
from serve.api.api_keys import KeyFile
from serve.api.boundary import Boundary, OriginGuard
from serve.api.exchange import EXCHANGE, Exchange
from serve.api.handlers import Handler, Handlers
from serve.api.pipeline import Pipeline
from serve.api.responses import error_response
from serve.api.v2.handlers import InferenceHandlers
from serve.api.v2.messages import LENGTH_HEADER
from serve.config.hosts import AllowedHosts
from serve.config.settings import Config
from serve.errors import BadPreflight, MethodNotAllowed, UnknownRoute
from serve.imaging.pool import DEATHS
from serve.model.classifier import Classifier
from serve.observability.metrics import Metrics
from serve.observability.shared_metrics import MetricsMemory
from serve.scheduling.lifecycle import Lifecycle

# Raises `Unauthorized` unless the key is accepted; None is a request without a key.
KeyCheck = Callable[[bytes | None], None]

_KEY_SECONDS: Final = 1.0  # between two looks at the API keys file


def create_metrics(classifier: Classifier, memory: MetricsMemory | None = None, number: int = 0) -> Metrics:
    """Returns metrics labelled with this release and model, which count its decoders' deaths; arguments as theirs."""
    model, decoders = classifier.model, classifier.decoders
    described = {name: str(model.card[name]) for name in ("variant", "engine", "engine_reason")}
    build = {"version": __version__, "model": model.name, **described, "decoders": decoders.state}
    metrics = Metrics(build, memory, number)
    metrics.declare_deaths(DEATHS)
    decoders.on_death = metrics.count_death
    return metrics


class HandlerRoute(Route):
    """A route that checks the API key with `require`, if given, and sends what its handler returns.

    It matches no path with control characters, because the regular expressions of Starlette's `Route` ignore a newline
    at the end.
    """

    def __init__(self, path: str, handler: Handler, methods: Sequence[str], require: KeyCheck | None = None) -> None:
        super().__init__(path, handler, methods=methods)
        self._handler = handler
        self._require = require
        self._allowed = sorted(self.methods or ())

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, more = super().matches(scope)
        if match is not Match.NONE and not scope["path"].isprintable():
            return Match.NONE, {}
        return match, more

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[EXCHANGE]
        exchange.route = self.path
        if self._require is not None:
            self._require(_api_key(exchange.headers))
        if scope["method"] not in self._allowed:
            raise MethodNotAllowed(
                f"{scope['method']} is not allowed here; allowed: {', '.join(self._allowed)}. POST /upload classifies "
                "images.",
                self._allowed,
            )
        response = await self._handler(exchange)
        await response(scope, receive, send)


def _api_key(headers: dict[bytes, bytes]) -> bytes | None:
    """Returns the API key of a request, from `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return token.strip()
    return headers.get(b"x-api-key") or None


async def _unknown_route(scope: Scope, receive: Receive, send: Send) -> None:
    raise UnknownRoute("There is no such route; POST /upload classifies images, and GET /docs lists the other routes.")


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
        await error_response(scope[EXCHANGE], refused, self._kept)(scope, receive, send)


def create_app(
    config: Config, classifier: Classifier, lifecycle: Lifecycle | None = None, metrics: Metrics | None = None
) -> Boundary:
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
    keys = KeyFile(config.api_keys_file) if config.api_keys_file else None
    require = keys.require if keys else None
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
        HandlerRoute("/upload", handlers.upload, ["POST"], require),
        HandlerRoute("/explain", handlers.explain, ["POST"], require),
        *(HandlerRoute(path, handler, ["GET"]) for path, handler in open_routes.items()),
        *(HandlerRoute(path, handler, methods, require) for path, handler, methods in inference.routes()),
    ]
    with_cors = partial(
        Cors,
        allow_origins=config.cors_origins,
        allow_methods=["*"],  # the router refuses methods that a route lacks, with a problem
        allow_headers=["*"],
        allow_private_network=True,  # a listed origin is allowed from any network to any network
        expose_headers=["X-Request-ID", "Retry-After", "Server-Timing", LENGTH_HEADER],
    )
    metrics.declare_routes(route.path for route in routes)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with pipeline.lifespan():
            watching = asyncio.ensure_future(_watch(keys, pipeline)) if keys else None
            try:
                yield
            finally:
                if watching:
                    watching.cancel()

    return Boundary(
        # A redirected upload would be sent twice; a 404 is clearer.
        Router(routes, redirect_slashes=False, default=_unknown_route, lifespan=lifespan),
        OriginGuard(AllowedHosts(config.allowed_hosts, config.host), config.cors_origins),
        metrics,
        lifecycle,
        with_cors if config.cors_origins else None,
    )


async def _watch(keys: KeyFile, pipeline: Pipeline) -> None:
    """Reads the API keys again when their file changes, off the event loop."""
    while True:
        await asyncio.sleep(_KEY_SECONDS)
        await pipeline.messages.run(keys.refresh)
