"""The path of an image from an admitted request to its result, which `/upload` and `/v2` share."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request

from serve.api.parameters import TIMEOUT_HEADER, TIMING_HEADER, parse_timeout
from serve.api.responses import server_timing, stage_seconds
from serve.api.upload import UploadLimits
from serve.config.hosts import is_same_origin
from serve.config.settings import Config
from serve.imaging.malloc import trim_malloc
from serve.model.classifier import Classified, Classifier, Normalised, Opened, Prepared
from serve.observability.metrics import Metrics
from serve.scheduling.lifecycle import InFlightRequest, Lifecycle
from serve.scheduling.message_thread import MessageThread
from serve.scheduling.scheduler import Scheduler
from serve.scheduling.task import Outcome
from serve.scheduling.upload_budget import Upload, UploadBudget

# Every request is answered before the scheduler closes, so the work of a thread that is still busy is not needed.
_CLOSING_SECONDS: Final = 0.3
_TRIM_SECONDS: Final = 5.0


class Pipeline:
    """A loaded classifier with the scheduler that runs it, and the limits, deadlines and metrics of its requests.

    Decoding and inference never run on the event loop.
    """

    def __init__(self, config: Config, classifier: Classifier, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self.config = config
        self.classifier = classifier
        self.lifecycle = lifecycle
        self.metrics = metrics
        self.limits = UploadLimits(config.max_request_bytes, config.max_files)
        self.uploads = UploadBudget(config.max_upload_bytes, config.body_timeout_ms / 1000)

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Starts the threads and accepts requests; on exit refuses requests and stops the threads."""
        self.messages = MessageThread(self.config.max_queue)
        self.scheduler: Scheduler[Opened | Normalised, Prepared, Classified] = Scheduler(
            self._prepare,
            self.classifier.compute,
            streams=self.config.thread_plan.streams,
            max_queue=self.config.max_queue,
            item_seconds=self.classifier.model.infer_seconds,
        )
        self.classifier.decoders.on_slow = self.scheduler.step_aside
        self.classifier.decoders.is_alone = self.scheduler.is_alone
        self.metrics.queue_depth = lambda: self.scheduler.depth
        self.lifecycle.start()
        trimming = asyncio.ensure_future(self._trim_after_bursts())
        try:
            yield
        finally:
            trimming.cancel()
            self.lifecycle.begin_drain()
            self.messages.close()
            self.scheduler.close(_CLOSING_SECONDS)

    @contextlib.asynccontextmanager
    async def admit(self) -> AsyncIterator[tuple[InFlightRequest, Upload]]:
        """Admits a request with images until the end of the `async with` block.

        Raises:
            NotReady: the server is starting or shutting down.
            QueueFull: the queue has no room for even one image, so the body is not worth reading.
        """
        async with self.lifecycle.track() as in_flight:
            with self.uploads.track() as upload:
                self.scheduler.require_room()
                yield in_flight, upload

    def request_timeout(self, request: Request) -> float:
        """Returns the seconds from the end of a request's body to its deadline; raises `BadParameter`."""
        return parse_timeout(request.headers.getlist(TIMEOUT_HEADER), self.config.request_timeout_ms)

    async def compute(self, jobs: Sequence[Opened | Normalised], deadline: float) -> list[Outcome[Classified]]:
        """Classifies images; the arguments, outcomes and errors are those of `Scheduler.run`."""
        asyncio.get_running_loop().call_soon(self.metrics.update_queue_depth)  # by then the jobs are queued
        return await self.scheduler.run(jobs, deadline)

    def record_stages(
        self, request: Request, read_seconds: float, outcomes: Sequence[Outcome[Classified]]
    ) -> dict[str, str]:
        """Records in metrics and log how long each stage took; returns `Server-Timing` if the client may see it.

        Args:
            request: gets the stages and the headers in its scope, for the access log and for a problem response.
            read_seconds: how long the body took to arrive.
            outcomes: of the request's images.
        """
        self.metrics.observe_stage("read", read_seconds)
        for outcome in outcomes:
            if outcome.result is not None:
                self.metrics.observe_stage("queue", outcome.queued_seconds)
                for stage, seconds in outcome.result.seconds.items():
                    self.metrics.observe_stage(stage, seconds)
        stages = stage_seconds(read_seconds, outcomes)
        request.scope["stages"] = stages
        shown = self.config.server_timing or _asks_for_timing(request)
        headers = {"Server-Timing": server_timing(stages)} if shown else {}
        request.scope["timing"] = headers
        return headers

    def _prepare(self, job: Opened | Normalised) -> Prepared:
        self.metrics.update_queue_depth()  # this job has just left the queue
        return self.classifier.prepare(job)

    async def _trim_after_bursts(self) -> None:
        """Calls malloc_trim() every few seconds while images are processed; glibc rarely does by itself."""
        done = 0
        while True:
            await asyncio.sleep(_TRIM_SECONDS)
            if self.scheduler.done != done:
                done = self.scheduler.done
                self.messages.do(trim_malloc)


def _asks_for_timing(request: Request) -> bool:
    """Returns whether the request asks for `Server-Timing` and comes from one of this server's own pages."""
    headers = request.headers
    site, origin, host = (headers.get(name, "") for name in ("sec-fetch-site", "origin", "host"))
    return headers.get(TIMING_HEADER) == "1" and is_same_origin(origin, site, request.scope["scheme"], host)
