"""The HTTP application: which path leads to which handler, through what, and what becomes of errors.

Domain errors become problems by the table in `problems.py`.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ExceptionHandler, Receive, Scope, Send

from serve import __version__
from serve.classifier import Classifier
from serve.config import Config
from serve.errors import RequestError
from serve.handlers import Server
from serve.handlers_v2 import InferenceServer
from serve.inference import LENGTH_HEADER
from serve.keys import KeyFile
from serve.lifecycle import Lifecycle
from serve.metrics import NO_ROUTE, Metrics
from serve.middleware import KeyGuard, LingeringClose, OriginGuard, RequestLog
from serve.problems import problem, problem_of, refusal, retry_after

# What wants an API key where there are keys; probes and the model card do not.
_GUARDED: Final = ("/upload", "/v2")
_UNGUARDED: Final = ("/v2/health",)


def metrics_of(classifier: Classifier) -> Metrics:
    """Fresh metrics, which say what is being served."""
    variant = str(classifier.card["variant"])
    return Metrics({"version": __version__, "model": classifier.model.name, "variant": variant})


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
    routes = [
        Route("/", server.root),
        Route("/upload", server.upload, methods=["POST"]),
        Route("/model", server.model),
        Route("/livez", server.livez),
        Route("/readyz", server.readyz),
        Route("/healthz", server.readyz),
        Route("/metrics", server.show_metrics),
        Route("/openapi.json", server.openapi),
        Route("/docs", server.docs),
        *InferenceServer(server).routes(),
    ]
    cors = Middleware(
        Cors,
        allow_origins=config.cors_origins,
        allow_methods=["*"],  # which method fits which route is the router's to say, with a problem
        allow_headers=["*"],
        allow_private_network=True,  # a listed origin is listed wherever it and the server are
        expose_headers=["X-Request-ID", "Retry-After", "Server-Timing", LENGTH_HEADER],
    )
    keys = None
    if config.api_keys_file:
        require = KeyFile(config.api_keys_file).require
        keys = Middleware(KeyGuard, metrics, prefixes=_GUARDED, but=_UNGUARDED, require=require)
    metrics.expect(route.path for route in routes)
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(RequestLog, metrics, route_of=_namer(routes)),
            Middleware(LingeringClose, leaving=lambda: lifecycle.draining),
            Middleware(OriginGuard, metrics, allowed=config.cors_origins),
            *([cors] if config.cors_origins else []),
            *([keys] if keys else []),
        ],
        exception_handlers={
            RequestError: cast(ExceptionHandler, _refuser(metrics)),
            HTTPException: cast(ExceptionHandler, _answer_http_exception),
            ClientDisconnect: _answer_nobody,
        },
        lifespan=server.lifespan,
    )
    app.state.lifecycle = lifecycle
    app.router.redirect_slashes = False  # a redirected upload would be sent twice; 404 says what is wrong
    return app


def _namer(routes: list[Route]) -> Callable[[Scope], str]:
    """The template of the route that a scope is of, also where it has not come that far."""
    fixed = {route.path for route in routes if not route.param_convertors}
    others = [route for route in routes if route.param_convertors]

    def name(scope: Scope) -> str:
        path: str = scope["path"]
        if path in fixed:
            return path
        return next((route.path for route in others if route.path_regex.match(path)), NO_ROUTE)

    return name


def _response(request: Request, content: dict[str, Any], headers: dict[str, str]) -> Response:
    body, media_type = refusal(request.scope["path"], content)
    return Response(body, content["status"], headers, media_type)


# Plain functions Starlette would run on a thread: three milliseconds each where the CPUs are busy.
def _refuser(metrics: Metrics) -> Callable[[Request, RequestError], Awaitable[Response]]:
    async def answer(request: Request, error: RequestError) -> Response:
        metrics.rejected(error)
        seconds = retry_after(error)
        headers = {} if seconds is None else {"Retry-After": str(seconds)}
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


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """The client left before its request was complete; the status is for the log alone (nginx's 499)."""
    return Response(status_code=499)
