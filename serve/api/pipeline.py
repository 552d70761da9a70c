"""The path of an image from an admitted request to its result, which `/upload` and `/v2` share."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from serve.api.exchange import Exchange
from serve.api.parameters import TIMEOUT_HEADER, TIMING_HEADER, parse_timeout
from serve.api.responses import server_timing
from serve.api.upload import UploadLimits
from serve.config.hosts import is_same_origin
from serve.config.settings import Config
from serve.imaging.malloc import trim_malloc
from serve.model.classifier import Classifier
from serve.model.stages import Classified, Normalised, Opened, Prepared
from serve.observability.metrics import Metrics
from serve.scheduling.batch_scheduler import BatchScheduler
from serve.scheduling.in_flight import InFlightRequest
from serve.scheduling.lifecycle import Lifecycle
from serve.scheduling.loop_calls import LoopCalls
from serve.scheduling.message_thread import MessageThread
from serve.scheduling.scheduler import Scheduler
from serve.scheduling.task import Outcome
from serve.scheduling.upload_budget import UploadBudget
from serve.scheduling.wakeups import Wakeups

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
    async def lifespan(self) -> AsyncIterator[None]:
        """Starts the threads and accepts requests; on exit refuses requests and stops the threads."""
        self._wakeups = Wakeups()
        LoopCalls.of_running_loop()  # opens its pipe: a system without descriptors fails the start, and no request
        self.messages = MessageThread(self.config.max_queue)
        self.scheduler = self._scheduler()
        self.classifier.decoders.on_slow = self.scheduler.step_aside
        self.classifier.decoders.is_alone = self.scheduler.is_alone
        self.metrics.queue_depth = lambda: self.scheduler.depth
        self.lifecycle.start()
        trimming = asyncio.ensure_future(self._trim_after_bursts())
        try:
            yield
        finally:
            trimming.cancel()
            self._wakeups.defer(False)
            self.lifecycle.begin_drain()
            self.messages.close()
            self.scheduler.close(_CLOSING_SECONDS)

    def _scheduler(self) -> Scheduler[Opened | Normalised, Prepared, Classified]:
        config, classifier = self.config, self.classifier
        settings: dict[str, Any] = {
            "streams": config.thread_plan.streams,
            "max_queue": config.max_queue,
            "item_seconds": classifier.model.infer_seconds,
        }
        max_batch = classifier.model.max_batch
        if max_batch == 1:
            return Scheduler(self._prepare, classifier.compute, **settings)
        settings |= {"max_batch": max_batch, "wait_seconds": config.batch_wait_ms / 1000}
        return BatchScheduler(self._prepare, classifier.compute, classifier.compute_batch, **settings)

    def admit(self) -> InFlightRequest:
        """Returns an accepted request with images, for a `with` block.

        Raises:
            NotReady: the server is starting or shutting down.
            QueueFull: the queue has no room for even one image, so the body is not worth reading.
        """
        self.lifecycle.require_ready()
        try:
            self.scheduler.require_room()
        finally:
            self._wakeups.defer(self.scheduler.limit.overflowed)
        return InFlightRequest(self.lifecycle, self.uploads)

    def request_timeout(self, exchange: Exchange) -> float:
        """Returns the seconds from the end of a request's body to its deadline; raises `BadParameter`."""
        if TIMEOUT_HEADER not in exchange.headers:
            return self.config.request_timeout_ms / 1000
        return parse_timeout(exchange.header_list(TIMEOUT_HEADER), self.config.request_timeout_ms)

    def record_stages(
        self, exchange: Exchange, read_seconds: float, outcomes: Sequence[Outcome[Classified]]
    ) -> dict[str, str]:
        """Records in metrics and log how long each stage took; returns `Server-Timing` if the client may see it.

        In the log and in `Server-Timing` the times of several images are added up, except for `queue`, which is the
        longest wait among them.

        Args:
            exchange: the request.
            read_seconds: how long the body took to arrive.
            outcomes: of the request's images.
        """
        stages = {"read": read_seconds, "decode": 0.0, "preprocess": 0.0, "queue": 0.0, "infer": 0.0}
        times = [("read", read_seconds)]
        for outcome in outcomes:
            stages["queue"] = max(stages["queue"], outcome.queued_seconds)
            if outcome.result is not None:
                times.append(("queue", outcome.queued_seconds))
                for stage, seconds in outcome.result.seconds.items():
                    times.append((stage, seconds))
                    stages[stage] = stages.get(stage, 0.0) + seconds
        self.metrics.observe_stages(times)
        exchange.record.stages = stages
        if self.config.server_timing or (TIMING_HEADER in exchange.headers and _asks_for_timing(exchange)):
            exchange.timing = {"Server-Timing": server_timing(stages)}
        return exchange.timing

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


def _asks_for_timing(exchange: Exchange) -> bool:
    """Returns whether the request asks for `Server-Timing` and comes from one of this server's own pages."""
    if exchange.headers.get(TIMING_HEADER) != b"1":
        return False
    site, origin, host = (exchange.header(name) for name in (b"sec-fetch-site", b"origin", b"host"))
    return is_same_origin(origin, site, exchange.scope["scheme"], host)
