"""The HTTP application: routes, and the order in which one upload becomes one answer.

The only module that imports the web framework. Domain errors become problems by the table in `problems.py`.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final, TypeVar, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ExceptionHandler, Receive

from serve.answers import prediction, prediction_or_problem, server_timing
from serve.arrival import Arrival, Arrivals
from serve.classifier import Classified, Classifier, Job, Prepared
from serve.config import Config
from serve.errors import DeadlinePassed, QueueFull, RequestError
from serve.inspector import Inspector
from serve.keys import KeyFile
from serve.lifecycle import Lifecycle, Visit
from serve.memory import trim
from serve.middleware import KeyGuard, LingeringClose, OriginGuard, RequestLog
from serve.parameters import TIMEOUT_HEADER, parse_timeout, parse_top_k
from serve.picture import is_quick_to_open
from serve.problems import MEDIA_TYPE, encode, problem, problem_of, retry_after
from serve.scheduler import Outcome, Scheduler
from serve.upload import UploadedFile, UploadLimits, read_upload

T = TypeVar("T")

_TRIM_SECONDS: Final = 5.0
# What wants an API key where there are keys; probes and the model card do not.
_GUARDED: Final = ("/upload", "/v2")


class PrettyEnd(JSONResponse):
    """JSON that ends its line, for who reads it in a terminal."""

    def render(self, content: Any) -> bytes:
        return super().render(content) + b"\n"


class Server:
    """The handlers, around one warm classifier and the scheduler that shares out its time.

    Nothing that computes runs on the event loop. Nor do header checks, unless they are sure to be quick: they take
    microseconds, but a file can be made of millions of empty segments.
    """

    def __init__(self, config: Config, classifier: Classifier, lifecycle: Lifecycle) -> None:
        self.config = config
        self.classifier = classifier
        self.lifecycle = lifecycle
        self.limits = UploadLimits(config.max_request_bytes, config.max_files)
        self.arrivals = Arrivals(config.max_upload_bytes, config.body_timeout_ms / 1000)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Ready from start-up to shutdown; requests outside of it are refused."""
        self.inspector = Inspector(self.config.max_queue)
        self.scheduler: Scheduler[Job, Prepared, Classified] = Scheduler(
            self.classifier.prepare,
            self.classifier.compute,
            streams=self.config.thread_plan.streams,
            max_queue=self.config.max_queue,
            item_seconds=self.classifier.model.infer_seconds,
        )
        self.lifecycle.start()
        trimming = asyncio.ensure_future(self._give_memory_back())
        try:
            yield
        finally:
            trimming.cancel()
            self.lifecycle.begin_drain()
            self.inspector.close()
            self.scheduler.close()

    async def root(self, request: Request) -> Response:
        return PlainTextResponse("Server is Running\n")

    async def livez(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        self.lifecycle.require_ready()
        return PlainTextResponse("ok\n")

    async def model(self, request: Request) -> Response:
        self.lifecycle.require_ready()
        return PrettyEnd(self.classifier.card)

    async def upload(self, request: Request) -> Response:
        async with self.lifecycle.accept() as visit:
            with self.arrivals.one() as arrival:
                return await self._answer(request, visit, arrival)

    async def _answer(self, request: Request, visit: Visit, arrival: Arrival) -> Response:
        started = time.monotonic()
        top_k = parse_top_k(request.query_params.getlist("top_k"), len(self.classifier.labels))
        seconds = parse_timeout(request.headers.getlist(TIMEOUT_HEADER), self.config.request_timeout_ms)
        self.scheduler.require_room()  # before an upload that would be refused is read
        files = await read_upload(request.headers, arrival.paced(request.stream()), self.limits)
        visit.arrived()
        read = time.monotonic()
        outcomes = await _while_connected(request.receive, self._classify(files, top_k, read + seconds))
        timing = {"Server-Timing": server_timing(read - started, outcomes)} if self.config.server_timing else None
        model_name = self.classifier.model.name
        if len(files) == 1:
            return PrettyEnd(prediction(outcomes[0].unwrap(), model_name), headers=timing)
        results = [
            {"filename": file.filename, **prediction_or_problem(outcome, model_name)}
            for file, outcome in zip(files, outcomes, strict=True)
        ]
        return PrettyEnd({"results": results}, headers=timing)

    async def _give_memory_back(self) -> None:
        """Now and then return what a burst of large pictures has left, which malloc by itself may never do."""
        done = 0
        while True:
            await asyncio.sleep(_TRIM_SECONDS)
            if self.scheduler.done != done:
                done = self.scheduler.done
                self.inspector.do(trim)

    async def _classify(self, files: list[UploadedFile], top_k: int, deadline: float) -> list[Outcome[Classified]]:
        """The outcome of each file. Those whose header rules them out are never queued."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                opened = [await self._open(file, top_k, alone=len(files) == 1) for file in files]
        except TimeoutError:
            raise DeadlinePassed.before_answer() from None
        jobs = [job for job in opened if isinstance(job, Job)]
        computed = iter(await self.scheduler.run(jobs, deadline) if jobs else [])
        return [next(computed) if isinstance(job, Job) else Outcome(0.0, error=job) for job in opened]

    async def _open(self, file: UploadedFile, top_k: int, alone: bool) -> Job | RequestError:
        try:
            if alone and is_quick_to_open(file.data):
                return self.classifier.open(file.data, top_k)
            return await self.inspector.check(self.classifier.open, file.data, top_k)
        except QueueFull:
            raise
        except RequestError as error:
            return error


async def _while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled with `ClientDisconnect` if the client leaves before it is there."""
    working = asyncio.current_task()
    watching = asyncio.ensure_future(_disconnected(receive))
    over = False

    def leave(_: asyncio.Future[None]) -> None:
        if working is not None and not over:
            working.cancel()

    watching.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if working is None or not watching.done():
            raise  # somebody else's wish
        working.uncancel()
        raise ClientDisconnect from None
    finally:
        over = True
        watching.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def create_app(config: Config, classifier: Classifier, lifecycle: Lifecycle | None = None) -> Starlette:
    """The ASGI application over a loaded classifier; it answers 503 until its lifespan has started.

    lifecycle: for who wants to drain the application before ending it.
    """
    lifecycle = lifecycle or Lifecycle(config.grace_seconds)
    server = Server(config, classifier, lifecycle)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=config.cors_origins,
        allow_methods=["*"],  # which method fits which route is the router's to say, with a problem
        allow_headers=["*"],
        expose_headers=["X-Request-ID", "Retry-After", "Server-Timing"],
    )
    keys = None
    if config.api_keys_file:
        keys = Middleware(KeyGuard, prefixes=_GUARDED, require=KeyFile(config.api_keys_file).require)
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
            Middleware(LingeringClose, leaving=lambda: lifecycle.draining),
            Middleware(OriginGuard, allowed=config.cors_origins),
            *([cors] if config.cors_origins else []),
            *([keys] if keys else []),
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


def _problem_response(content: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(encode(content), content["status"], headers, MEDIA_TYPE)


# Plain functions Starlette would run on a thread: three milliseconds each where the CPUs are busy.
async def _answer_request_error(request: Request, error: RequestError) -> Response:
    seconds = retry_after(error)
    return _problem_response(problem_of(error), {} if seconds is None else {"Retry-After": str(seconds)})


async def _answer_http_exception(request: Request, error: HTTPException) -> Response:
    """The framework's own refusals: no such route, or not with this method."""
    headers = dict(error.headers or {})
    if error.status_code == 405:
        detail = f"{request.method} is not allowed here; allowed: {headers['Allow']}."
        return _problem_response(problem(405, "Method Not Allowed", detail), headers)
    return _problem_response(problem(404, "Not Found", "There is no such route; POST /upload classifies."), headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """The client left before its request was complete; the status is for the log alone (nginx's 499)."""
    return Response(status_code=499)
