"""Closed-loop load: N clients, each sending one photograph again as soon as its answer is there → one JSON object.

    python benchmarks/harness/load.py --url http://127.0.0.1:5000/upload --photo cat.jpg --clients 16

Each client is a thread with a blocking, kept connection and the request's bytes built beforehand. The clock starts once
every client has had an answer (a single one: three), so that the queue is as full as it stays. It stops after the time
asked for, but not before every client has had another answer, because a slow server may give many at once, in long
intervals, and not before the least number of answers asked for. The rate is that of the answers between the last one
before the clock's start and the last one counted, so that no answer is cut in two. Then everyone finishes what it sent,
so that the server is left with nothing to do. Answers are checked: only right ones count.
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

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.harness.wire import BrokenAnswer, Connection, build_request
from serve.printable import ArgumentParser

_WORK: Final = ("decode", "preprocess", "infer")  # stages of a `Server-Timing` that no HTTP server can do without
_UNTIMED: Final = 3  # answers that a single client has before the clock starts
PERCENTILES: Final = (50, 90, 99)
_REST_AFTER_ERROR: Final = 0.05  # seconds, so that a server that is down is not asked thousands of times


@dataclass
class Record:
    """What one client saw. answers: (end, seconds, stages) of each right one, by the clock of `time.perf_counter`."""

    answers: list[tuple[float, float, dict[str, float]]] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Load:
    """One measurement. send: as for `build_request`. expect: right ImageNet ids, separated by commas; empty takes any.

    seconds: length of the measurement. least: answers that it lasts for at least, unless there are failures. patience:
    seconds that the clients may take for their first answers, and again for what is missing after those seconds.
    count: answers after which it ends early. timeout: seconds for one answer.
    """

    url: str
    photo: bytes
    send: str = "multipart:file"
    expect: str = ""
    clients: int = 1
    seconds: float = 3.0
    least: int = 1
    patience: float = 20.0
    count: int = 1_000_000
    timeout: float = 60.0


class _Clients:
    """The threads and what they share: `stop`, and how many right answers there have been."""

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
        """Whether every client has had so many; one that met a failure is not waited for."""
        return all(len(record.answers) >= each or record.failures for record in self.records)

    def count(self) -> int:
        return sum(len(record.answers) for record in self.records)

    def had_answers_since(self, start: float, least: int) -> bool:
        """Whether every client has had another answer, and all together so many."""
        if any(record.failures for record in self.records):
            least = 0
        since = sum(answer[0] > start for record in self.records for answer in record.answers)
        return since >= least and all(
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
                self.stop.wait(_REST_AFTER_ERROR)
                continue
            ended = time.perf_counter()
            if answer.status != 200:
                record.failures.append((ended, f"status {answer.status}"))
                self.stop.wait(_REST_AFTER_ERROR)
            elif not answer.is_right(self.load.expect):
                record.failures.append((ended, f"wrong answer: {answer.imagenet_id or 'no ImageNet id'}"))
            else:
                record.answers.append((ended, ended - started, answer.stages))
        connection.close()


def run_load(load: Load) -> dict[str, Any]:
    """Measure; times in milliseconds. CPU is this process's own, between the clock's start and end."""
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
            not clients.had_answers_since(start, min(load.least, load.count))
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
    """Of milliseconds; None where there are too few for it: p99 of less than 100 would be their maximum."""
    return {
        f"p{percent}_ms": round(percentile(times, percent), 3) if len(times) * (100 - percent) >= 100 else None
        for percent in PERCENTILES
    }


def _stage_medians(stages: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for entry in stages for name in entry)
    return {name: round(statistics.median(entry[name] for entry in stages if name in entry), 3) for name in names}


def _beyond(answers: list[tuple[float, float, dict[str, float]]]) -> float | None:
    """Median of what a request takes beyond decoding, preprocessing and inference, as the client sees it."""
    beyond = [
        seconds * 1000 - sum(stages[name] for name in _WORK)
        for _, seconds, stages in answers
        if stages.keys() >= set(_WORK)
    ]
    return round(statistics.median(beyond), 3) if beyond else None


def main() -> int:
    """Run the command; the process's exit status: 1 where there was no right answer."""
    parser = ArgumentParser(
        prog="python benchmarks/harness/load.py",
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--url", required=True, help="where to send it, http only")
    parser.add_argument("--photo", type=Path, required=True, metavar="FILE", help="what to send")
    parser.add_argument("--send", default=Load.send, help="multipart:FIELD, raw:MEDIA/TYPE or v2:INPUT")
    parser.add_argument(
        "--expect", default=Load.expect, metavar="ID", help="right ImageNet ids, with commas; any if not given"
    )
    parser.add_argument("--clients", type=int, default=Load.clients, metavar="N", help="clients at a time")
    parser.add_argument("--seconds", type=float, default=Load.seconds, help="length of the measurement")
    parser.add_argument("--least", type=int, default=Load.least, metavar="N", help="right answers, at least")
    parser.add_argument("--patience", type=float, default=Load.patience, help="seconds for the slowest client, at most")
    parser.add_argument("--count", type=int, default=Load.count, metavar="N", help="right answers that end it early")
    parser.add_argument("--timeout", type=float, default=Load.timeout, help="seconds for one answer, at most")
    options = vars(parser.parse_args())
    options["photo"] = options["photo"].read_bytes()
    result = run_load(Load(**options))
    print(json.dumps(result))
    return 0 if result["images"] else 1


if __name__ == "__main__":
    sys.exit(main())
