"""The server's metrics, in Prometheus's text format.

Labels take their values from fixed sets: route templates, status codes, stages, reasons.
"""

import operator
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from serve.observability.record import CLIENT_DISCONNECTED, RequestRecord
from serve.observability.shared_metrics import CELLS, GAUGES, MetricsMemory
from serve.problems import REASONS, RULES

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# The `route` of requests that match no route, and of connections refused before a request was parsed.
NO_ROUTE: Final = "none"
STAGES: Final = ("read", "decode", "preprocess", "queue", "infer", "look")
# Seconds: a small model answers in five milliseconds, and ten seconds are the default deadline.
_BUCKETS: Final = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGE_BUCKETS: Final = (0.0005, 0.001, 0.0025, *_BUCKETS)

# Every status that a response or the log can have; 0 is that of a request that ended without either.
_CODES: Final = (0, 200, CLIENT_DISCONNECTED, *sorted({rule.status for rule in RULES.values()}))
_DEPTH, _IN_PROGRESS = range(GAUGES)


class _Histogram:
    """The cells of a histogram: a count for each bucket and one beyond the last, then the sum. Times are in seconds."""

    def __init__(self, cells: Sequence[int], bounds: Sequence[float]) -> None:
        self.cells = cells
        self.bounds = bounds

    def observe(self, row: "memoryview[float]", seconds: float) -> None:
        row[self.cells[bisect_left(self.bounds, seconds)]] += 1.0
        row[self.cells[-1]] += seconds

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str], total: Callable[[int], float]) -> None:
        *counts, seconds = map(total, self.cells)
        bounds = [*map(str, self.bounds), "+Inf"]
        family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), seconds)


class Metrics:
    """The metrics of a server, which may be several processes.

    Each series is a cell in the process's row of shared memory, so counting takes no lock and no call. All but
    `update_queue_depth` and `count_death` belong to the event loop.

    Args:
        build: labels of `serve_build_info`.
        memory: of the processes that share their metrics.
        number: of this process among them, from 0.

    Attributes:
        queue_depth: returns how many images wait for a CPU now.
        dropped_lines: returns how many log lines standard error has not accepted so far.
    """

    def __init__(self, build: Mapping[str, str], memory: MetricsMemory | None = None, number: int = 0) -> None:
        self._build = build
        self._rows = (memory or MetricsMemory()).rows
        self._row = self._rows[number]
        self._used = GAUGES
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._registry.register(_Processes(memory.process_ids) if memory else ProcessCollector(registry=None))
        self.queue_depth: Callable[[], int] = lambda: 0
        self.dropped_lines: Callable[[], int] = lambda: 0
        self._dropped = 0
        self._lock = threading.Lock()
        (self._lines_dropped,) = self._allocate(1)
        self._rejected = dict(zip(REASONS.values(), self._allocate(len(REASONS)), strict=True))
        self._deaths: dict[str, int] = {}
        self._stages = {stage: self._histogram(_STAGE_BUCKETS) for stage in STAGES}
        self._requests: dict[str, dict[int, int]] = {}
        self._durations: dict[str, _Histogram] = {}
        self.declare_routes([])

    def declare_routes(self, routes: Iterable[str]) -> None:
        """Starts each route's count of status 500 at 0, so that the first one shows as an increase."""
        for route in (*routes, NO_ROUTE):
            if route not in self._requests:
                self._requests[route] = dict(zip(_CODES, self._allocate(len(_CODES)), strict=True))
                self._durations[route] = self._histogram(_BUCKETS)

    def declare_deaths(self, reasons: Iterable[str]) -> None:
        """Starts the count of decoders' deaths of each reason at 0."""
        for reason in reasons:
            (self._deaths[reason],) = self._allocate(1)

    def count_death(self, reason: str) -> None:
        """Counts a decoder process that ended before its time."""
        with self._lock:
            self._row[self._deaths[reason]] += 1.0

    def update_queue_depth(self) -> None:
        """Records the queue's depth; call it on each change, because another process may be asked for the metrics."""
        with self._lock:  # or an older depth could be recorded last
            self._row[_DEPTH] = self.queue_depth()

    def request_started(self) -> None:
        """Counts a request in progress."""
        self._row[_IN_PROGRESS] += 1.0

    def request_finished(self, route: str, record: RequestRecord, seconds: float) -> None:
        """Counts a request that was answered or abandoned.

        Args:
            route: its route's template, or `NO_ROUTE`.
            record: has its status and the reason why it was refused.
            seconds: its duration.
        """
        row = self._row
        row[_IN_PROGRESS] -= 1.0
        row[self._requests[route][record.status]] += 1.0
        self._durations[route].observe(row, seconds)
        if record.reason is not None:
            row[self._rejected[record.reason]] += 1.0
        if row[_DEPTH] or self.queue_depth():
            self.update_queue_depth()
        self._count_dropped_lines()

    def count_refused_connection(self, code: int, reason: str) -> None:
        """Counts a connection refused before a request was parsed."""
        self._row[self._requests[NO_ROUTE][code]] += 1.0
        self._row[self._rejected[reason]] += 1.0

    def observe_stages(self, seconds: Iterable[tuple[str, float]]) -> None:
        """Records the seconds of some of `STAGES` for an image or, for `read`, an upload."""
        row, stages = self._row, self._stages
        for stage, spent in seconds:
            stages[stage].observe(row, spent)

    def render(self) -> bytes:
        """Returns all metrics, as `MEDIA_TYPE`."""
        self.update_queue_depth()
        self._count_dropped_lines()
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yields the families of all processes together, for prometheus_client."""
        requests = CounterMetricFamily(
            "serve_requests", "Requests ended, and connections refused.", labels=["route", "code"]
        )
        for route, codes in self._requests.items():
            for code, cell in codes.items():
                if (count := self._total(cell)) or code == 500:
                    requests.add_metric([route, str(code)], count)
        yield requests
        durations = HistogramMetricFamily(
            "serve_request_duration_seconds", "From a request's head to the end of its response.", labels=["route"]
        )
        for route, histogram in self._durations.items():
            if any(map(self._total, histogram.cells)):
                histogram.add_to(durations, [route], self._total)
        yield durations
        stages = HistogramMetricFamily(
            "serve_stage_duration_seconds",
            "Time of accepted images by stage; read is for a whole upload.",
            labels=["stage"],
        )
        for stage, histogram in self._stages.items():
            histogram.add_to(stages, [stage], self._total)
        yield stages
        yield GaugeMetricFamily("serve_queue_depth", "Images that wait for a CPU.", self._total(_DEPTH))
        yield GaugeMetricFamily(
            "serve_requests_in_progress", "Requests begun and not yet answered.", self._total(_IN_PROGRESS)
        )
        yield CounterMetricFamily(
            "serve_log_lines_dropped",
            "Log lines that standard error did not accept.",
            self._total(self._lines_dropped),
        )
        rejected = "Requests and connections that were refused, by reason."
        yield self._by_reason("serve_rejected", rejected, self._rejected)
        deaths = "Decoder processes that ended before their time, by reason."
        yield self._by_reason("serve_decoder_deaths", deaths, self._deaths)
        information = GaugeMetricFamily(
            "serve_build_info", "What is being served; always 1.", labels=sorted(self._build)
        )
        information.add_metric([self._build[label] for label in sorted(self._build)], 1)
        yield information

    def _by_reason(self, name: str, text: str, cells: Mapping[str, int]) -> CounterMetricFamily:
        family = CounterMetricFamily(name, text, labels=["reason"])
        for reason, cell in cells.items():
            family.add_metric([reason], self._total(cell))
        return family

    def _allocate(self, count: int) -> Sequence[int]:
        cells = range(self._used, self._used + count)
        if cells.stop > CELLS:
            raise ValueError(f"the metrics need more than {CELLS} cells")
        self._used = cells.stop
        return cells

    def _histogram(self, bounds: Sequence[float]) -> _Histogram:
        return _Histogram(self._allocate(len(bounds) + 2), bounds)

    def _total(self, cell: int) -> float:
        return sum(row[cell] for row in self._rows)

    def _count_dropped_lines(self) -> None:
        if (dropped := self.dropped_lines()) != self._dropped:
            self._row[self._lines_dropped] += dropped - self._dropped
            self._dropped = dropped


class _Processes(Collector):
    """Memory, CPU time and open files of all processes together, and the earliest start time."""

    def __init__(self, process_ids: Iterable[int]) -> None:
        self._ids = process_ids

    def collect(self) -> Iterable[Metric]:
        """Returns the families of `ProcessCollector`, summed over the processes."""
        total: dict[str, Metric] = {}
        for pid in filter(None, self._ids):
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
