"""The account of the event loop's time, and its bound on calls, which does not depend on the machine."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import hot_path
from benchmarks.hot_path import BOUNDS, MAX_CALLS, Row, table
from serve.config.settings import ROOT


def test_an_upload_takes_no_more_calls_than_the_bound(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/hot_path.py", "--calls", "--rounds", "1", "--count", "5"]
    done = subprocess.run([*command, "--output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = re.fullmatch(r"form [\d.]+ ms, raw [\d.]+ ms, (\d+) calls", done.stdout.splitlines()[-1])
    assert found
    assert 100 < int(found[1]) <= MAX_CALLS
    assert (tmp_path / "hot_path.json").exists()


@pytest.mark.parametrize(
    ("ms", "calls", "only_calls", "status"),
    [(0.2, 300, False, 0), (0.5, 300, False, 1), (0.5, 300, True, 0), (0.2, 900, False, 1), (0.2, 900, True, 1)],
)
def test_the_status_tells_whether_the_bounds_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ms: float, calls: int, only_calls: bool, status: int
) -> None:
    names = ("protocol", "boundary, route, answer", "body, form, deadlines", "query, scheduler, prediction", "metrics")

    async def measured(*_: object) -> dict[tuple[str, str], Row]:
        return {(name, form): Row([(ms, ms)], calls) for name in names for form in BOUNDS}

    monkeypatch.setattr(hot_path, "measure", measured)
    monkeypatch.setattr(sys, "argv", ["hot_path", "--output", str(tmp_path), *(["--calls"] if only_calls else [])])
    monkeypatch.setattr("benchmarks.hot_path.tune_malloc", lambda arenas: None)
    assert hot_path.main() == status


def test_layers_add_up() -> None:
    times = {"a": (0.1, 0.2), "b": (0.3, 0.5), "c": (0.4, 0.6), "d": (1.0, 2.0), "metrics": (0.9, 1.5)}
    found = {(name, "form"): Row([pair], number) for number, (name, pair) in enumerate(times.items(), 1)}
    lines = table(found, "form")
    figures = [[float(each) for each in line[34:].split()] for line in lines[1:]]
    assert figures == [[0.1, 0.2, 1], [0.2, 0.3, 1], [0.1, 0.1, 1], [0.6, 1.4, 1], [1.0, 2.0, 4], [0.1, 0.5, -1]]


def test_the_time_of_an_upload_is_divided_by_their_number() -> None:
    class Sleepless:
        async def send(self, count: int) -> None:
            sum(range(100_000 * count))

    loop_ms, process_ms = asyncio.run(hot_path.milliseconds(Sleepless(), 20))  # type: ignore[arg-type]
    assert 0.1 < loop_ms < 20
    assert loop_ms <= process_ms * 1.1
