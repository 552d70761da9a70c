"""What the server counts and times, in Prometheus's text format. The only module that imports prometheus_client.

Labels take their values from fixed sets: route templates, status codes, stages, reasons. No error leaves this module.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from serve import errors
from serve.problems import RULES

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# The route of whatever has none: unknown paths, and what is no HTTP.
NO_ROUTE: Final = "none"
STAGES: Final = ("read", "decode", "preprocess", "queue", "infer")
# Seconds: a small model's answer takes five milliseconds, and ten seconds are the default deadline.
_BUCKETS: Final = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGE_BUCKETS: Final = (0.0005, 0.001, 0.0025, *_BUCKETS)

disable_created_metrics()  # type: ignore[no-untyped-call]  # when a series began is no use to anyone here


class Metrics:
    """The metrics of one server process. build: what `serve_build_info` says, such as version and model."""

    def __init__(self, build: Mapping[str, str]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "serve_requests", "Requests that were answered.", ["route", "code"], registry=self._registry
        )
        self._durations = Histogram(
            "serve_request_duration_seconds",
            "From a request's head to the end of its answer.",
            ["route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        stages = Histogram(
            "serve_stage_duration_seconds",
            "Where the time of accepted pictures goes; read is of a whole upload.",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=self._registry,
        )
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._depth = Gauge("serve_queue_depth", "Pictures that wait for a CPU.", registry=self._registry)
        self._in_progress = Gauge(
            "serve_requests_in_progress", "Requests begun and not yet answered.", registry=self._registry
        )
        rejected = Counter("serve_rejected", "Requests that were refused, by why.", ["reason"], registry=self._registry)
        self._rejected = {reason: rejected.labels(reason) for reason in _REASONS.values()}
        information = Gauge(
            "serve_build_info", "What is being served; always 1.", sorted(build), registry=self._registry
        )
        information.labels(**build).set(1)

    def expect(self, routes: Iterable[str]) -> None:
        """Begin to count defects at none, so that the first one is seen to have been added."""
        for route in (*routes, NO_ROUTE):
            self._requests.labels(route, 500)

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Read the queue's depth from here whenever it is asked for."""
        self._depth.set_function(depth)

    def began(self) -> None:
        """A request has come."""
        self._in_progress.inc()

    def ended(self, route: str, code: int, seconds: float) -> None:
        """It is answered, or given up. route: its template, or `NO_ROUTE`."""
        self._in_progress.dec()
        self._requests.labels(route, code).inc()
        self._durations.labels(route).observe(seconds)

    def rejected(self, error: errors.RequestError) -> None:
        """A request was refused with this error."""
        self._rejected[_REASONS[type(error)]].inc()

    def never_was(self, code: int) -> None:
        """Something was refused that never became a request, with this status."""
        self._requests.labels(NO_ROUTE, code).inc()

    def spent(self, stage: str, seconds: float) -> None:
        """A picture, or for `read` an upload, took so long at one of `STAGES`."""
        self._stages[stage].observe(seconds)

    def text(self) -> bytes:
        """All of it, as `MEDIA_TYPE`."""
        return generate_latest(self._registry)


_REASONS: Final = {error: re.sub(r"(?<!^)(?=[A-Z])", "_", error.__name__).lower() for error in RULES}
