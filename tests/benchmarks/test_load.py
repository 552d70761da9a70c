"""The load generator against a scripted server."""

import base64
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.http_client import BrokenAnswer, Connection, build_request
from benchmarks.harness.load import Load, percentile, percentiles, run_load
from tests.benchmarks.scripted_server import RIGHT, WRONG, always, answering
from tests.server_process import ROOT

PHOTO = b"\xff\xd8\xff not much of a photograph"


def short(url: str, **settings: Any) -> Load:
    usual: dict[str, Any] = {"url": url, "photo": PHOTO, "expect": "n00000001", "seconds": 0.3, "patience": 2.0}
    return Load(**usual | settings)


def test_right_answers_are_counted_and_timed() -> None:
    with answering(always(RIGHT)) as (url, received):
        result = run_load(short(url, clients=3))
    assert 0 < result["images"] <= len(received)
    assert (result["errors"], result["wrong"]) == (0, 0)
    assert 0 < result["p50_ms"] <= max(result["ms"])
    assert len(result["ms"]) == result["images"]
    assert result["images_per_s"] == pytest.approx(result["images"] / result["seconds"], rel=0.01)
    assert 0 < result["load_cpu_share"] < 4


def test_any_of_several_right_answers_is_right() -> None:
    with answering(lambda number: (200, {}, (RIGHT, WRONG)[number % 2])) as (url, _):
        result = run_load(short(url, expect="n00000001,n00000002"))
    assert result["images"] > 0
    assert result["wrong"] == 0


def test_a_success_with_the_wrong_class_is_no_image() -> None:
    with answering(always(WRONG)) as (url, _):
        result = run_load(short(url))
    assert result["images"] == 0
    assert result["p50_ms"] is None
    assert result["wrong"] > 0
    assert list(result["failures"]) == ["wrong answer: n00000002"]


def test_a_success_without_a_class_is_wrong_whatever_is_expected() -> None:
    with answering(always(b"{}")) as (url, _):
        result = run_load(short(url, expect=""))
    assert result["images"] == 0
    assert list(result["failures"]) == ["wrong answer: no ImageNet id"]


def test_refusals_are_errors_and_do_not_stop_the_others() -> None:
    with answering(lambda number: (429, {}, b"{}") if number % 2 else (200, {}, RIGHT)) as (url, _):
        result = run_load(short(url, clients=2))
    assert result["images"] > 0
    assert result["errors"] > 0
    assert list(result["failures"]) == ["status 429"]


def test_a_server_that_is_not_there_is_an_error_within_bounded_time() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        began = time.monotonic()
        result = run_load(short(f"http://127.0.0.1:{taken.getsockname()[1]}/upload"))
    assert time.monotonic() - began < 20
    assert result["images"] == 0
    assert result["errors"] > 0


def test_a_server_that_never_answers_costs_no_more_than_the_patience_and_the_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/upload"
        result = run_load(short(url, patience=0.2, timeout=0.5))
    assert time.monotonic() - began < 20
    assert result["images"] == 0


def test_the_count_ends_it_early() -> None:
    with answering(always(RIGHT)) as (url, received):
        result = run_load(short(url, seconds=30.0, count=20))
    assert result["seconds"] < 10
    assert len(received) < 1000


def test_the_clock_waits_for_a_slow_clients_second_answer() -> None:
    def slow(number: int) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.4)
        return 200, {}, RIGHT

    with answering(slow) as (url, _):
        result = run_load(short(url, clients=2, seconds=0.05))
    assert result["images"] >= 2
    assert result["p50_ms"] > 390


def test_answers_before_the_clock_starts_are_not_counted() -> None:
    with answering(always(RIGHT)) as (url, received):
        alone = run_load(short(url))
        before = len(received)
        crowd = run_load(short(url, clients=5))
    assert alone["images"] <= before - 3
    assert crowd["images"] <= len(received) - before - 5


def test_a_rate_is_that_of_whole_answers() -> None:
    """One answer takes 0.4 s: counting in a window of one second would give a rate of 2 or 3."""

    def slow(number: int) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.4)
        return 200, {}, RIGHT

    with answering(slow) as (url, _):
        result = run_load(short(url, seconds=1.0))
    mean = sum(result["ms"]) / len(result["ms"]) / 1000
    assert result["images_per_s"] == pytest.approx(1 / mean, rel=0.1)


def test_it_lasts_until_there_are_as_many_answers_as_are_asked_for() -> None:
    with answering(always(RIGHT)) as (url, _):
        result = run_load(short(url, seconds=0.01, min_answers=40, patience=60.0))
    assert result["images"] >= 40


def test_answers_that_will_not_come_are_not_waited_for() -> None:
    began = time.monotonic()
    with answering(lambda number: (200, {}, RIGHT) if number < 5 else (500, {}, b"")) as (url, _):
        run_load(short(url, seconds=0.01, min_answers=40, patience=60.0))
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("count", "told"), [(9, {"p50_ms"}), (99, {"p50_ms", "p90_ms"})])
def test_too_few_answers_have_no_high_percentile(count: int, told: set[str]) -> None:
    found = percentiles([float(number) for number in range(count)])
    assert {name for name, value in found.items() if value is not None} == told


def test_a_hundred_answers_have_a_p99_that_is_not_their_maximum() -> None:
    assert percentiles([float(number) for number in range(1, 101)]) == {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99}


def test_stages_are_medians_of_server_timing() -> None:
    timing = "read;dur=0.5, decode;dur=2, preprocess;dur=1.5, queue;dur=0.1, infer;dur=3"
    with answering(always(RIGHT, **{"Server-Timing": timing})) as (url, _):
        result = run_load(short(url))
    assert result["stages_ms"] == {"read": 0.5, "decode": 2, "preprocess": 1.5, "queue": 0.1, "infer": 3}
    assert result["beyond_ms"] == pytest.approx(result["p50_ms"] - 6.5, abs=0.01)


@pytest.mark.parametrize("protocol", ["HTTP/1.0", "HTTP/1.1"])
def test_servers_that_keep_the_connection_and_those_that_do_not_are_read_alike(protocol: str) -> None:
    with answering(always(RIGHT), protocol) as (url, _):
        result = run_load(short(url))
    assert result["images"] > 1
    assert result["errors"] == 0


def test_a_chunked_answer_is_put_together_and_the_connection_goes_on() -> None:
    with answering(always(RIGHT, **{"Transfer-Encoding": "chunked"})) as (url, _):
        connection = Connection("127.0.0.1", int(url.split(":")[2].split("/")[0]), 5)
        request = build_request("127.0.0.1", "/upload", PHOTO, "raw:image/jpeg")
        bodies = [connection.exchange(request).body for _ in range(2)]
        connection.close()
    assert bodies == [RIGHT, RIGHT]


def test_an_answer_that_is_not_http_is_an_error() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        connection = Connection("127.0.0.1", listener.getsockname()[1], 5)
        accepted: list[socket.socket] = []
        with pytest.raises(BrokenAnswer, match="SSH"):
            connection._socket = socket.create_connection(listener.getsockname())
            accepted.append(listener.accept()[0])
            accepted[0].sendall(b"SSH-2.0-server\r\n\r\n")
            connection.exchange(b"")
        accepted[0].close()


def test_each_way_of_sending_carries_the_photograph() -> None:
    bodies = {}
    with answering(always(RIGHT)) as (url, received):
        for send in ("multipart:image", "raw:image/jpeg", "v2:input"):
            run_load(short(url, send=send, seconds=0.01))
            bodies[send] = received[-1]
    assert bodies["raw:image/jpeg"] == PHOTO
    assert b'name="image"' in bodies["multipart:image"]
    assert PHOTO in bodies["multipart:image"]
    [value] = json.loads(bodies["v2:input"])["inputs"]
    assert base64.b64decode(value["data"][0]) == PHOTO


def test_an_unknown_way_of_sending_is_named() -> None:
    with pytest.raises(ValueError, match="pigeon"):
        build_request("127.0.0.1", "/", PHOTO, "pigeon:post")


@pytest.mark.parametrize(("percent", "expected"), [(50, 5), (90, 9), (99, 10), (100, 10), (1, 1)])
def test_percentiles_are_by_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], percent) == expected


def test_the_command_prints_one_json_object(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(PHOTO)
    with answering(always(RIGHT)) as (url, _):
        command = [
            sys.executable,
            "-m",
            "benchmarks.harness.load",
            "--url",
            url,
            "--photo",
            str(photo),
            "--seconds",
            "0.2",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["images"] > 0
