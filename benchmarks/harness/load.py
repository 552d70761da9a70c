"""A closed-loop load generator: N clients, each sends one photograph again as soon as it has its answer.

    python -m benchmarks.harness.load --url http://127.0.0.1:5000/upload --photo cat.jpg --clients 16

Prints one JSON object. Each client is a thread with a blocking keep-alive connection and a request that was built
beforehand. The clock starts once every client has had an answer (a single client: three), so that the queue is in
its steady state. It stops after the time asked for, but only once every client has had another answer (a slow server
may send many at once, at long intervals) and the minimum number of answers has arrived. The rate counts whole answers:
those after the last one before the clock's start, up to the last one before its end. Then every client waits for its
last answer, which leaves the server idle. Only right answers count.
"""

import argparse
import gc
import json
import math
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.harness.http_client import BrokenAnswer, Connection, build_request
from serve.printable import ArgumentParser

_WORK: Final = ("decode", "preprocess", "infer")  # the stages in `Server-Timing` that are not overhead
_UNTIMED: Final = 3  # answers of a single client before the clock starts
PERCENTILES: Final = (50, 90, 99)
_PAUSE_AFTER_ERROR: Final = 0.05  # seconds; without it a server that is down gets thousands of requests


@dataclass
class Record:
    """What one client received.

    Attributes:
        answers: (end, seconds, stages) of each right answer; `end` as `time.perf_counter` gives it.
        failures: (end, reason) of everything else.
    """

    answers: list[tuple[float, float, dict[str, float]]] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Load:
    """One measurement.

    Attributes:
        send: As for `build_request`.
        expect: Right ImageNet ids, separated by commas; if empty, any is right.
        seconds: Length of the measurement.
        min_answers: Right answers to wait for even after `seconds`, unless there are failures.
        patience: Seconds to wait for the clients' first answers, and after `seconds` for missing ones.
        count: Right answers that end the measurement early.
        timeout: Seconds for one answer.
    """

    url: str
    photo: bytes
    send: str = "multipart:file"
    expect: str = ""
    clients: int = 1
    seconds: float = 3.0
    min_answers: int = 1
    patience: float = 20.0
    count: int = 1_000_000
    timeout: float = 60.0


class _Clients:
    """The clients' threads and records."""

    def __init__(self, load: Load) -> None:
        self.load = load
        address = urlsplit(load.url)
        self.host, self.port = address.hostname or "127.0.0.1", address.port or 80
        path = (address.path or "/") + (f"?{address.query}" if address.query else "")
        self.request = build_request(address.netloc, path, load.photo, load.send)
        self.stop = threading.Event()
        self.records = [Record() for _ in range(load.clients)]
        self.threads = [threading.Thread(target=self._run, args=[record]) for record in self.records]

    def had_answers(self, each: int) -> bool:
        """Whether every client has had so many answers; clients with failures are not waited for."""
        return all(len(record.answers) >= each or record.failures for record in self.records)

    def count(self) -> int:
        return sum(len(record.answers) for record in self.records)

    def had_answers_since(self, start: float, min_answers: int) -> bool:
        """Whether every client has had an answer since `start`, and all of them together `min_answers`."""
        if any(record.failures for record in self.records):
            min_answers = 0
        since = sum(answer[0] > start for record in self.records for answer in record.answers)
        return since >= min_answers and all(
            record.failures or (record.answers and record.answers[-1][0] > start) for record in self.records
        )

    def _run(self, record: Record) -> None:
        connection = Connection(self.host, self.port, self.load.timeout)
        while not self.stop.is_set():
            started = time.perf_counter()
            try:
                answer = connection.exchange(self.request)
            except (OSError, BrokenAnswer, ValueError) as error:
                record.failures.append((time.perf_counter(), f"error: {str(error) or type(error).__name__}"))
                self.stop.wait(_PAUSE_AFTER_ERROR)
                continue
            ended = time.perf_counter()
            if answer.status != 200:
                record.failures.append((ended, f"status {answer.status}"))
                self.stop.wait(_PAUSE_AFTER_ERROR)
            elif not answer.is_right(self.load.expect):
                record.failures.append((ended, f"wrong answer: {answer.imagenet_id or 'no ImageNet id'}"))
            else:
                record.answers.append((ended, ended - started, answer.stages))
        connection.close()


def run_load(load: Load) -> dict[str, Any]:
    """Run one measurement.

    Returns:
        Counts, rate, percentiles and times in milliseconds; `load_cpu_*` is this process's CPU time between the clock's
        start and end.
    """
    clients = _Clients(load)
    gc.freeze()
    began = time.perf_counter()
    for thread in clients.threads:
        thread.start()
    try:
        while (
            not clients.had_answers(_UNTIMED if load.clients == 1 else 1)
            and time.perf_counter() - began < load.patience
        ):
            time.sleep(0.002)
        start, cpu_start = time.perf_counter(), time.process_time()
        while (left := start + load.seconds - time.perf_counter()) > 0 and clients.count() < load.count:
            time.sleep(min(left, 0.05))
        while (
            not clients.had_answers_since(start, min(load.min_answers, load.count))
            and time.perf_counter() - start < load.seconds + load.patience
        ):
            time.sleep(0.002)
        end, cpu = time.perf_counter(), time.process_time() - cpu_start
    finally:
        clients.stop.set()
        for thread in clients.threads:
            thread.join()
    ends = [answer[0] for record in clients.records for answer in record.answers if answer[0] <= end]
    first = max((each for each in ends if each <= start), default=start)
    seconds = max((each for each in ends if each > start), default=end) - first
    answers = [answer for record in clients.records for answer in record.answers if start < answer[0] <= end]
    times = [took * 1000 for _, took, _ in answers]
    failures = Counter(what for record in clients.records for _, what in record.failures)
    return {
        "clients": load.clients,
        "seconds": round(seconds, 3),
        "warm_up_seconds": round(start - began, 3),
        "images": len(answers),
        "images_per_s": round(len(answers) / seconds, 3),
        **percentiles(times),
        "ms": [round(each, 3) for each in times],
        "stages_ms": _stage_medians([stages for _, _, stages in answers]),
        "beyond_ms": _beyond(answers),
        "errors": sum(count for what, count in failures.items() if not what.startswith("wrong")),
        "wrong": sum(count for what, count in failures.items() if what.startswith("wrong")),
        "failures": dict(failures.most_common(5)),
        "load_cpu_seconds": round(cpu, 4),
        "load_cpu_share": round(cpu / (end - start), 4),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def percentiles(times: Sequence[float]) -> dict[str, float | None]:
    """The percentiles in `PERCENTILES`; None where there are too few times: p99 of fewer than 100 is their maximum."""
    return {
        f"p{percent}_ms": round(percentile(times, percent), 3) if len(times) * (100 - percent) >= 100 else None
        for percent in PERCENTILES
    }


def _stage_medians(stages: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for entry in stages for name in entry)
    return {name: round(statistics.median(entry[name] for entry in stages if name in entry), 3) for name in names}


def _beyond(answers: list[tuple[float, float, dict[str, float]]]) -> float | None:
    """Median overhead: the client's milliseconds less decoding, preprocessing and inference."""
    beyond = [
        seconds * 1000 - sum(stages[name] for name in _WORK)
        for _, seconds, stages in answers
        if stages.keys() >= set(_WORK)
    ]
    return round(statistics.median(beyond), 3) if beyond else None


def main() -> int:
    """Run the command and return its exit status: 1 if there was no right answer."""
    parser = ArgumentParser(
        prog="python -m benchmarks.harness.load",
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--url", required=True, help="where to send it, http only")
    parser.add_argument("--photo", type=Path, required=True, metavar="FILE", help="the JPEG to send")
    parser.add_argument("--send", default=Load.send, help="multipart:FIELD, raw:MEDIA/TYPE or v2:INPUT")
    parser.add_argument(
        "--expect", default=Load.expect, metavar="ID", help="right ImageNet ids, separated by commas; empty for any"
    )
    parser.add_argument("--clients", type=int, default=Load.clients, metavar="N", help="clients at a time")
    parser.add_argument("--seconds", type=float, default=Load.seconds, help="length of the measurement")
    parser.add_argument(
        "--min-answers", type=int, default=Load.min_answers, metavar="N", help="right answers to wait for"
    )
    parser.add_argument("--patience", type=float, default=Load.patience, help="seconds to wait for the slowest client")
    parser.add_argument(
        "--count", type=int, default=Load.count, metavar="N", help="right answers that end the measurement early"
    )
    parser.add_argument("--timeout", type=float, default=Load.timeout, help="seconds for one answer")
    options = vars(parser.parse_args())
    options["photo"] = options["photo"].read_bytes()
    result = run_load(Load(**options))
    print(json.dumps(result))
    return 0 if result["images"] else 1


if __name__ == "__main__":
    sys.exit(main())
