"""What the server counts and times, in Prometheus's text format. The only module that imports prometheus_client.

Labels take their values from fixed sets: route templates, status codes, stages, reasons. No error leaves this module.
"""

import operator
import os
import re
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

from serve import errors
from serve.observability.counting import FOLDER
from serve.problems import RULES

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# The route of whatever has none: unknown paths, and what is no HTTP.
NO_ROUTE: Final = "none"
STAGES: Final = ("read", "decode", "preprocess", "queue", "infer")
# Seconds: a small model's answer takes five milliseconds, and ten seconds are the default deadline.
_BUCKETS: Final = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGE_BUCKETS: Final = (0.0005, 0.001, 0.0025, *_BUCKETS)

disable_created_metrics()  # type: ignore[no-untyped-call]  # when a series began is no use to anyone here


# The processes that count together with this one, itself included; 0 where there is none at the moment.
_process_ids: Sequence[int] = ()


def count_as(number: int, process_ids: Sequence[int]) -> None:
    """Be one of several that count together, whose ids these are; to be called before any metrics are made."""
    global _process_ids
    _process_ids = process_ids
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of a server, also where it is several processes. build: what `serve_build_info` says."""

    def __init__(self, build: Mapping[str, str]) -> None:
        self._registry = CollectorRegistry()
        self._shown = self._registry
        if folder := os.environ.get(FOLDER):
            self._shown = CollectorRegistry()
            MultiProcessCollector(self._shown, folder)  # type: ignore[no-untyped-call]
            self._shown.register(_Processes())
        else:
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
        self._depth = Gauge(
            "serve_queue_depth", "Pictures that wait for a CPU.", registry=self._registry, multiprocess_mode="livesum"
        )
        self._depth_now: Callable[[], int] = lambda: 0
        self._lines_dropped = Counter(
            "serve_log_lines_dropped",
            "Lines of the log that standard error did not take.",
            registry=self._registry,
        )
        self._dropped_now: Callable[[], int] = lambda: 0
        self._dropped = 0
        self._depth_lock = threading.Lock()
        self._in_progress = Gauge(
            "serve_requests_in_progress",
            "Requests begun and not yet answered.",
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        rejected = Counter("serve_rejected", "Requests that were refused, by why.", ["reason"], registry=self._registry)
        self._rejected = {reason: rejected.labels(reason) for reason in _REASONS.values()}
        information = Gauge(
            "serve_build_info",
            "What is being served; always 1.",
            sorted(build),
            registry=self._registry,
            multiprocess_mode="livemax",
        )
        information.labels(**build).set(1)

    def expect(self, routes: Iterable[str]) -> None:
        """Begin to count defects at none, so that the first one is seen to have been added."""
        for route in (*routes, NO_ROUTE):
            self._requests.labels(route, 500)

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Read the queue's depth from here."""
        self._depth_now = depth

    def watch_log(self, dropped: Callable[[], int]) -> None:
        """Read from here how many lines were dropped."""
        self._dropped_now = dropped

    def _note_log(self) -> None:
        dropped = self._dropped_now()
        self._lines_dropped.inc(dropped - self._dropped)
        self._dropped = dropped

    def note_queue(self) -> None:
        """The queue's depth has changed; noted as it does, because another process may be the one that is asked."""
        with self._depth_lock:  # or an older depth could be noted last
            self._depth.set(self._depth_now())

    def began(self) -> None:
        """A request has come."""
        self._in_progress.inc()

    def ended(self, route: str, code: int, seconds: float) -> None:
        """It is answered, or given up. route: its template, or `NO_ROUTE`."""
        self._in_progress.dec()
        self.note_queue()
        if self._dropped_now() > self._dropped:
            self._note_log()
        self._requests.labels(route, code).inc()
        self._durations.labels(route).observe(seconds)

    def rejected(self, error: errors.RequestError) -> None:
        """A request was refused with this error."""
        self._rejected[_REASONS[type(error)]].inc()

    def count_refused_connection(self, code: int) -> None:
        """Something was refused that never became a request, with this status."""
        self._requests.labels(NO_ROUTE, code).inc()

    def spent(self, stage: str, seconds: float) -> None:
        """A picture, or for `read` an upload, took so long at one of `STAGES`."""
        self._stages[stage].observe(seconds)

    def text(self) -> bytes:
        """All of it, as `MEDIA_TYPE`."""
        self.note_queue()
        self._note_log()
        return generate_latest(self._shown)


class _Processes(Collector):
    """Memory, CPU time and open files of all processes together; the start is the first one's."""

    def collect(self) -> Iterable[Metric]:
        """The families of `ProcessCollector`, each summed."""
        total: dict[str, Metric] = {}
        for pid in filter(None, _process_ids):
            for family in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                known = total.setdefault(family.name, family)
                if known is not family:
                    ours, other = known.samples[0], family.samples[0]
                    join = min if family.name == "process_start_time_seconds" else operator.add
                    known.samples[0] = ours._replace(value=join(ours.value, other.value))
        if cpu := total.get("process_cpu_seconds"):
            cpu.samples[0] = cpu.samples[0]._replace(value=cpu.samples[0].value + _of_the_ended())
        return total.values()


def _of_the_ended() -> float:
    """CPU seconds of the process that started these, and of those of them that have ended: a counter never falls."""
    try:
        fields = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


_REASONS: Final = {error: re.sub(r"(?<!^)(?=[A-Z])", "_", error.__name__).lower() for error in RULES}
