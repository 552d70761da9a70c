"""The HTTP application: routes, and the order in which one upload becomes one answer.

The only module that imports the web framework. Domain errors become problems by the table in `problems.py`.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, ExceptionHandler, Receive, Scope, Send

from serve.classifier import Classifier
from serve.config import Config
from serve.errors import BadParameter, ForeignOrigin, NotReady, RequestError
from serve.middleware import LingeringClose, RequestLog
from serve.postprocess import Scored
from serve.problems import MEDIA_TYPE, RULES, problem, problem_of
from serve.upload import UploadedFile, UploadLimits, read_upload

_DEFAULT_TOP_K = 5
_SIGNIFICANT_DIGITS = 6


class PrettyEnd(JSONResponse):
    """JSON that ends its line, for who reads it in a terminal."""

    def render(self, content: Any) -> bytes:
        return super().render(content) + b"\n"


class Server:
    """The handlers, around one warm classifier.

    Inference runs on one thread of its own, with the model's intra-op threads under it, and never on the event loop.
    So do header checks, on another: they take microseconds, unless a file is made of millions of empty segments.
    """

    def __init__(self, config: Config, classifier: Classifier) -> None:
        self.config = config
        self.classifier = classifier
        self.limits = UploadLimits(config.max_request_bytes, config.max_files)
        self.ready = False
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="classify")
        self.inspector = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inspect")

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Ready from start-up to shutdown; requests outside of it are refused."""
        self.ready = True
        try:
            yield
        finally:
            self.ready = False
            self.inspector.shutdown(cancel_futures=True)
            self.worker.shutdown(cancel_futures=True)

    async def root(self, request: Request) -> Response:
        return PlainTextResponse("Server is Running\n")

    async def livez(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        self._require_ready()
        return PlainTextResponse("ok\n")

    async def model(self, request: Request) -> Response:
        self._require_ready()
        return PrettyEnd(self.classifier.card)

    async def upload(self, request: Request) -> Response:
        self._require_ready()
        top_k = self._top_k(request)
        files = await read_upload(request.headers, request.stream(), self.limits)
        if len(files) == 1:
            return PrettyEnd(await self._predict(await self._open(files[0]), top_k))
        opened = [await self._open_or_problem(file) for file in files]
        # One after the other, so that requests of single files get their turn in between.
        results = [
            {"filename": file.filename, **await self._predict_or_problem(image, top_k)}
            for file, image in zip(files, opened, strict=True)
        ]
        return PrettyEnd({"results": results})

    async def _open(self, file: UploadedFile) -> Image.Image:
        return await asyncio.get_running_loop().run_in_executor(self.inspector, self.classifier.open, file.data)

    async def _open_or_problem(self, file: UploadedFile) -> Image.Image | RequestError:
        try:
            return await self._open(file)
        except RequestError as error:
            return error

    async def _predict(self, image: Image.Image, top_k: int) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        scored = await loop.run_in_executor(self.worker, self.classifier.classify, image, top_k)
        return _prediction(scored, self.classifier.model.name)

    async def _predict_or_problem(self, image: Image.Image | RequestError, top_k: int) -> dict[str, Any]:
        if isinstance(image, RequestError):
            return problem_of(image)
        try:
            return await self._predict(image, top_k)
        except RequestError as error:
            return problem_of(error)

    def _top_k(self, request: Request) -> int:
        given = ",".join(request.query_params.getlist("top_k") or [str(_DEFAULT_TOP_K)])
        classes = len(self.classifier.labels)
        if re.fullmatch(r"0*[1-9]\d{0,8}", given, re.ASCII) and int(given) <= classes:
            return int(given)
        raise BadParameter(f"top_k={given[:40]!r} is not one whole number from 1 to {classes}.")

    def _require_ready(self) -> None:
        if not self.ready:
            raise NotReady("The server is not ready: its model is not loaded yet, or it is shutting down.")


class OriginGuard:
    """Refuse what a browser sends for a page of another origin, unless that origin is listed."""

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        self.app = app
        self.allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin")
        if origin is None or origin in self.allowed or origin.partition("://")[2] == headers.get("host"):
            await self.app(scope, receive, send)
            return
        refused = ForeignOrigin(
            f"Requests from pages of {origin[:100]} are refused; --cors-origins lists those allowed."
        )
        await _answer_request_error(Request(scope), refused)(scope, receive, send)


def create_app(config: Config, classifier: Classifier) -> Starlette:
    """The ASGI application over a loaded classifier; it answers 503 until its lifespan has started."""
    server = Server(config, classifier)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=config.cors_origins,
        allow_methods=["*"],  # which method fits which route is the router's to say, with a problem
        allow_headers=["*"],
        expose_headers=["X-Request-ID", "Retry-After"],
    )
    app = Starlette(
        routes=[
            Route("/", server.root),
            Route("/upload", server.upload, methods=["POST"]),
            Route("/model", server.model),
            Route("/livez", server.livez),
            Route("/readyz", server.readyz),
            Route("/healthz", server.readyz),
        ],
        middleware=[
            Middleware(RequestLog),
            Middleware(LingeringClose),
            Middleware(OriginGuard, allowed=config.cors_origins),
            *([cors] if config.cors_origins else []),
        ],
        exception_handlers={
            RequestError: cast(ExceptionHandler, _answer_request_error),
            HTTPException: cast(ExceptionHandler, _answer_http_exception),
            ClientDisconnect: _answer_nobody,
        },
        lifespan=server.lifespan,
    )
    app.router.redirect_slashes = False  # a redirected upload would be sent twice; 404 says what is wrong
    return app


def _prediction(scored: list[Scored], model_name: str) -> dict[str, Any]:
    entries = [
        {
            "imagenet_id": entry.label.imagenet_id,
            "label": entry.label.name,
            "probability": float(f"{entry.probability:.{_SIGNIFICANT_DIGITS}g}"),
        }
        for entry in scored
    ]
    return {**entries[0], "top_k": entries, "model": model_name}


def _problem_response(content: dict[str, Any], headers: dict[str, str]) -> Response:
    body = json.dumps(content, ensure_ascii=False).encode() + b"\n"
    return Response(body, content["status"], headers, MEDIA_TYPE)


def _answer_request_error(request: Request, error: RequestError) -> Response:
    retry_after = RULES[type(error)].retry_after
    return _problem_response(problem_of(error), {} if retry_after is None else {"Retry-After": str(retry_after)})


def _answer_http_exception(request: Request, error: HTTPException) -> Response:
    """The framework's own refusals: no such route, or not with this method."""
    headers = dict(error.headers or {})
    if error.status_code == 405:
        detail = f"{request.method} is not allowed here; allowed: {headers['Allow']}."
        return _problem_response(problem(405, "Method Not Allowed", detail), headers)
    return _problem_response(problem(404, "Not Found", "There is no such route; POST /upload classifies."), headers)


def _answer_nobody(request: Request, error: Exception) -> Response:
    """The client left before its request was complete; the status is for the log alone (nginx's 499)."""
    return Response(status_code=499)
