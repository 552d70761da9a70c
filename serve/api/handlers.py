"""What each route does, and the order in which one upload becomes one answer.

Domain errors leave every handler here; `app.py` makes answers of them.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import Receive

from serve.api.form import UploadedFile
from serve.api.openapi.docs_page import page
from serve.api.openapi.document import document
from serve.api.parameters import TIMEOUT_HEADER, TIMING_HEADER, parse_query, parse_timeout, parse_top_k
from serve.api.responses import prediction_or_problem, server_timing, stages_of
from serve.api.start_page import addressed, prefers_html, security_headers, start_page
from serve.api.upload import UploadLimits, read_upload
from serve.config.hosts import is_own_page
from serve.config.settings import Config
from serve.errors import DeadlinePassed, QueueFull, RequestError
from serve.imaging.formats import is_quick_to_open
from serve.model.classifier import Classified, Classifier, Job, Prepared, prediction
from serve.observability.metrics import MEDIA_TYPE as METRICS_MEDIA_TYPE
from serve.observability.metrics import Metrics
from serve.scheduling.header_checks import Inspector
from serve.scheduling.lifecycle import InFlightRequest, Lifecycle
from serve.scheduling.malloc import trim_malloc
from serve.scheduling.scheduler import Outcome, Scheduler
from serve.scheduling.upload_budget import Upload, UploadBudget

T = TypeVar("T")

# All are answered by then, so nobody waits for what a thread is still at.
_CLOSING_SECONDS: Final = 0.3
_TRIM_SECONDS: Final = 5.0


class JSONLineResponse(JSONResponse):
    """JSON that ends its line, for who reads it in a terminal."""

    def render(self, content: Any) -> bytes:
        return super().render(content) + b"\n"


class Server:
    """The handlers, around one warm classifier and the scheduler that shares out its time.

    Nothing that computes runs on the event loop. Nor do header checks, unless they are sure to be quick: they take
    microseconds, but a file can be made of millions of empty segments.
    """

    def __init__(self, config: Config, classifier: Classifier, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self.config = config
        self.classifier = classifier
        self.lifecycle = lifecycle
        self.metrics = metrics
        self.limits = UploadLimits(config.max_request_bytes, config.max_files)
        self.arrivals = UploadBudget(config.max_upload_bytes, config.body_timeout_ms / 1000)
        self.pacer = self.arrivals.pacer
        model = classifier.model
        described = document(config, model.name, model.input_side, model.class_count)
        self._openapi = bytes(JSONLineResponse(described).body)
        self._docs = page(described)
        variant = str(classifier.card["variant"])
        self._page = start_page(config, model.name, variant, model.class_count)
        self._page_headers = security_headers(self._page)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Ready from start-up to shutdown; requests outside of it are refused."""
        self.inspector = Inspector(self.config.max_queue)
        self.scheduler: Scheduler[Job | Prepared, Prepared, Classified] = Scheduler(
            self._prepare,
            self.classifier.compute,
            streams=self.config.thread_plan.streams,
            max_queue=self.config.max_queue,
            item_seconds=self.classifier.model.infer_seconds,
        )
        self.metrics.track_queue_depth(lambda: self.scheduler.depth)
        self.lifecycle.start()
        trimming = asyncio.ensure_future(self._give_memory_back())
        try:
            yield
        finally:
            trimming.cancel()
            self.lifecycle.begin_drain()
            self.inspector.close()
            self.scheduler.close(_CLOSING_SECONDS)

    async def root(self, request: Request) -> Response:
        if prefers_html(request.headers.get("accept", "")):
            await self.pacer.wait_for_turn()
            text = addressed(self._page, request.scope["scheme"], request.headers.get("host", ""))
            return HTMLResponse(text, headers={"Vary": "Accept", **self._page_headers})
        return PlainTextResponse("Server is Running\n", headers={"Vary": "Accept"})

    async def livez(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        self.lifecycle.require_ready()
        return PlainTextResponse("ok\n")

    async def model(self, request: Request) -> Response:
        self.lifecycle.require_ready()
        return JSONLineResponse(self.classifier.card)

    async def show_metrics(self, request: Request) -> Response:
        await self.pacer.wait_for_turn()
        return Response(self.metrics.render(), headers={"Content-Type": METRICS_MEDIA_TYPE})

    async def openapi(self, request: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    async def docs(self, request: Request) -> Response:
        await self.pacer.wait_for_turn()
        text = addressed(self._docs, request.scope["scheme"], request.headers.get("host", ""))
        return HTMLResponse(text, headers=security_headers(text))

    async def upload(self, request: Request) -> Response:
        async with self.admitted() as (visit, arrival):
            started = time.monotonic()
            top_k = parse_top_k(
                parse_query(request.scope["query_string"]).get("top_k", []), len(self.classifier.labels)
            )
            seconds = self.timeout_of(request)
            files = await read_upload(request.headers, arrival.limit_rate(request.stream()), self.limits)
            visit.body_received()
            read = time.monotonic()
            outcomes = await while_connected(request.receive, self._classify(files, top_k, read + seconds))
            timing = self.note(request, read - started, outcomes)
        model_name = self.classifier.model.name
        if len(files) == 1:
            return JSONLineResponse(prediction(outcomes[0].unwrap(), model_name), headers=timing)
        results = [
            {"filename": file.filename, **prediction_or_problem(outcome, model_name)}
            for file, outcome in zip(files, outcomes, strict=True)
        ]
        return JSONLineResponse({"results": results}, headers=timing)

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncIterator[tuple[InFlightRequest, Upload]]:
        """One request with pictures, from its head to its answer; refused before its body is read if it would be."""
        async with self.lifecycle.track() as visit:
            with self.arrivals.track() as arrival:
                self.scheduler.require_room()
                yield visit, arrival

    def timeout_of(self, request: Request) -> float:
        """Seconds that a request may take once it is complete."""
        return parse_timeout(request.headers.getlist(TIMEOUT_HEADER), self.config.request_timeout_ms)

    def note(self, request: Request, read_seconds: float, outcomes: Sequence[Outcome[Classified]]) -> dict[str, str]:
        """Tell log and metrics where a request's time went; headers that tell the client, if it may know."""
        self.metrics.observe_stage("read", read_seconds)
        for outcome in outcomes:
            if outcome.result is not None:
                self.metrics.observe_stage("queue", outcome.queued_seconds)
                for stage, seconds in outcome.result.seconds.items():
                    self.metrics.observe_stage(stage, seconds)
        stages = stages_of(read_seconds, outcomes)
        request.scope["stages"] = stages
        tells = self.config.server_timing or _asks_for_timing(request)
        headers = {"Server-Timing": server_timing(stages)} if tells else {}
        request.scope["timing"] = headers  # for a problem, of which app.py makes the answer
        return headers

    async def open(self, image: bytes, top_k: int, alone: bool) -> Job:
        """Check one picture's header; raises what `Classifier.open` raises, and `QueueFull`."""
        if not image or (alone and is_quick_to_open(image)):
            return self.classifier.open(image, top_k)
        return await self.inspector.check(self.classifier.open, image, top_k)

    async def compute(self, jobs: Sequence[Job | Prepared], deadline: float) -> list[Outcome[Classified]]:
        """As `Scheduler.run`."""
        asyncio.get_running_loop().call_soon(self.metrics.update_queue_depth)  # once they are queued
        return await self.scheduler.run(jobs, deadline)

    def _prepare(self, job: Job | Prepared) -> Prepared:
        self.metrics.update_queue_depth()  # it waits no more
        return self.classifier.prepare(job)

    async def _give_memory_back(self) -> None:
        """Now and then return what a burst of large pictures has left, which malloc by itself may never do."""
        done = 0
        while True:
            await asyncio.sleep(_TRIM_SECONDS)
            if self.scheduler.done != done:
                done = self.scheduler.done
                self.inspector.do(trim_malloc)

    async def _classify(self, files: list[UploadedFile], top_k: int, deadline: float) -> list[Outcome[Classified]]:
        """The outcome of each file. Those whose header rules them out are never queued."""
        async with until(deadline):
            alone = sum(bool(file.data) for file in files) == 1  # also beside the empty one that the page sends
            opened = [await self._open_or_tell(file, top_k, alone) for file in files]
        jobs = [job for job in opened if isinstance(job, Job)]
        computed = iter(await self.compute(jobs, deadline) if jobs else [])
        return [next(computed) if isinstance(job, Job) else Outcome(0.0, error=job) for job in opened]

    async def _open_or_tell(self, file: UploadedFile, top_k: int, alone: bool) -> Job | RequestError:
        try:
            return await self.open(file.data, top_k, alone)
        except QueueFull:
            raise
        except RequestError as error:
            return error


def _asks_for_timing(request: Request) -> bool:
    """Whether a page of this server asks to be told where the time went."""
    headers = request.headers
    site, origin, host = (headers.get(name, "") for name in ("sec-fetch-site", "origin", "host"))
    return headers.get(TIMING_HEADER) == "1" and is_own_page(origin, site, request.scope["scheme"], host)


@contextlib.asynccontextmanager
async def until(deadline: float) -> AsyncIterator[None]:
    """End what is within at this time, of `time.monotonic`, with `DeadlinePassed`."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            yield
    except TimeoutError:
        raise DeadlinePassed.before_answer() from None


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
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
