"""The server's metrics, in Prometheus's text format.

Labels take their values from fixed sets: route templates, status codes, stages, reasons.
"""

import operator
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from serve.observability.shared_metrics import FOLDER_VARIABLE
from serve.problems import REASONS

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# The `route` of requests that match no route, and of connections refused before a request was parsed.
NO_ROUTE: Final = "none"
STAGES: Final = ("read", "decode", "preprocess", "queue", "infer")
# Seconds: a small model answers in five milliseconds, and ten seconds are the default deadline.
_BUCKETS: Final = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGE_BUCKETS: Final = (0.0005, 0.001, 0.0025, *_BUCKETS)

disable_created_metrics()  # type: ignore[no-untyped-call]  # the *_created series would double the output


# Ids of the processes that share their metrics, including this one; 0 for a worker that is not running.
_process_ids: Sequence[int] = ()


def join_shared_metrics(number: int, process_ids: Sequence[int]) -> None:
    """Makes this process worker `number` of those that share metrics. Call it before `Metrics` is created.

    Args:
        number: the worker's, from 0.
        process_ids: the ids of all workers.
    """
    global _process_ids
    _process_ids = process_ids
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of a server, which may be several processes.

    Args:
        build: labels of `serve_build_info`.

    Attributes:
        queue_depth: returns how many images wait for a CPU now.
        dropped_lines: returns how many log lines standard error has not accepted so far.
    """

    def __init__(self, build: Mapping[str, str]) -> None:
        self._registry = self._shown = CollectorRegistry()
        if folder := os.environ.get(FOLDER_VARIABLE):
            self._shown = CollectorRegistry()
            MultiProcessCollector(self._shown, folder)  # type: ignore[no-untyped-call]
            self._shown.register(_Processes())
        else:
            ProcessCollector(registry=self._registry)
        counter = partial(Counter, registry=self._registry)
        gauge = partial(Gauge, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        self._requests = counter("serve_requests", "Requests ended, and connections refused.", ["route", "code"])
        self._durations = histogram(
            "serve_request_duration_seconds",
            "From a request's head to the end of its response.",
            ["route"],
            buckets=_BUCKETS,
        )
        stages = histogram(
            "serve_stage_duration_seconds",
            "Time of accepted images by stage; read is for a whole upload.",
            ["stage"],
            buckets=_STAGE_BUCKETS,
        )
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._depth = gauge("serve_queue_depth", "Images that wait for a CPU.", multiprocess_mode="livesum")
        self.queue_depth: Callable[[], int] = lambda: 0
        self._depth_lock = threading.Lock()
        self._lines_dropped = counter("serve_log_lines_dropped", "Log lines that standard error did not accept.")
        self.dropped_lines: Callable[[], int] = lambda: 0
        self._dropped = 0
        self._in_progress = gauge(
            "serve_requests_in_progress", "Requests begun and not yet answered.", multiprocess_mode="livesum"
        )
        rejected = counter("serve_rejected", "Requests and connections that were refused, by reason.", ["reason"])
        self._rejected = {reason: rejected.labels(reason) for reason in REASONS.values()}
        self._deaths = counter(
            "serve_decoder_deaths", "Decoder processes that ended before their time, by reason.", ["reason"]
        )
        information = gauge(
            "serve_build_info", "What is being served; always 1.", sorted(build), multiprocess_mode="livemax"
        )
        information.labels(**build).set(1)

    def declare_routes(self, routes: Iterable[str]) -> None:
        """Starts each route's count of status 500 at 0, so that the first one shows as an increase."""
        for route in (*routes, NO_ROUTE):
            self._requests.labels(route, 500)

    def declare_deaths(self, reasons: Iterable[str]) -> None:
        """Starts the count of decoders' deaths of each reason at 0."""
        for reason in reasons:
            self._deaths.labels(reason)

    def count_death(self, reason: str) -> None:
        """Counts a decoder process that ended before its time."""
        self._deaths.labels(reason).inc()

    def update_queue_depth(self) -> None:
        """Records the queue's depth; call it on each change, because another process may be asked for the metrics."""
        with self._depth_lock:  # or an older depth could be recorded last
            self._depth.set(self.queue_depth())

    def _update_dropped_lines(self) -> None:
        dropped = self.dropped_lines()
        self._lines_dropped.inc(dropped - self._dropped)
        self._dropped = dropped

    def request_started(self) -> None:
        """Counts a request in progress."""
        self._in_progress.inc()

    def request_finished(self, route: str, code: int, seconds: float, reason: str | None = None) -> None:
        """Counts a request that was answered or abandoned.

        Args:
            route: its route's template, or `NO_ROUTE`.
            code: its status.
            seconds: its duration.
            reason: why it was refused; None if it was not.
        """
        self._in_progress.dec()
        self.update_queue_depth()
        if self.dropped_lines() > self._dropped:
            self._update_dropped_lines()
        self._requests.labels(route, code).inc()
        self._durations.labels(route).observe(seconds)
        if reason is not None:
            self._rejected[reason].inc()

    def count_refused_connection(self, code: int, reason: str) -> None:
        """Counts a connection refused before a request was parsed."""
        self._requests.labels(NO_ROUTE, code).inc()
        self._rejected[reason].inc()

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Records the time of one of `STAGES` for an image or, for `read`, an upload."""
        self._stages[stage].observe(seconds)

    def render(self) -> bytes:
        """Returns all metrics, as `MEDIA_TYPE`."""
        self.update_queue_depth()
        self._update_dropped_lines()
        return generate_latest(self._shown)


class _Processes(Collector):
    """Memory, CPU time and open files of all processes together, and the earliest start time."""

    def collect(self) -> Iterable[Metric]:
        """Returns the families of `ProcessCollector`, summed over the processes."""
        total: dict[str, Metric] = {}
        for pid in filter(None, _process_ids):
            for family in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                known = total.setdefault(family.name, family)
                if known is not family:
                    ours, other = known.samples[0], family.samples[0]
                    join = min if family.name == "process_start_time_seconds" else operator.add
                    known.samples[0] = ours._replace(value=join(ours.value, other.value))
        if cpu := total.get("process_cpu_seconds"):
            cpu.samples[0] = cpu.samples[0]._replace(value=cpu.samples[0].value + _parent_cpu_seconds())
        return total.values()


def _parent_cpu_seconds() -> float:
    """Returns the CPU seconds of the supervisor and of ended workers, because a counter must never decrease."""
    try:
        fields = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
