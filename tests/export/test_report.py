"""The report of an export: each figure belongs to the variant, file and number of threads that it is listed for."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from export import evaluate, report
from export.engines import open_session
from export.evaluate import Comparison, class_numbers, measure_latency
from export.report import Variant, make_report, print_table

COMPARISON = Comparison(400, 0.71234, 0.73345, 0.98765, 3.456, 0.1, 0.99876)
ON_OPENVINO = Comparison(400, 0.70432, 0.73345, 0.97654, 4.567, 0.1, 0.98765)
FP32 = Variant("fp32", Path("m.onnx"), b"f" * 2_345_678, COMPARISON)
INT8 = Variant("int8", Path("m.int8.onnx"), b"i" * 1_234_567, COMPARISON)
QDQ = Variant("int8", Path("m.qdq.onnx"), b"q" * 1_345_678, ON_OPENVINO, "openvino")
TIMES = {
    1: {"m.onnx": 30.123, "m.int8.onnx": 11.456, "m.qdq.onnx": 5.678},
    2: {"m.onnx": 20.789, "m.int8.onnx": 7.012, "m.qdq.onnx": 4.321},
}


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(models: dict[str, bytes], side: int, threads: int) -> dict[str, float]:
        assert models == {each.path.name: each.content for each in (FP32, INT8, QDQ) if each.path.name in models}
        assert side == 224
        return TIMES[threads]

    monkeypatch.setattr(report, "measure_latency", fake)
    monkeypatch.setattr(report, "cpu", lambda: {"model": "a CPU", "features": []})


def test_each_row_has_its_own_variants_figures(tmp_path: Path) -> None:
    made = make_report([FP32, INT8, QDQ], "abc", tmp_path / "weights.pth", 224)
    assert made == {
        "weights_sha256": "abc",
        "weights_file": str(tmp_path / "weights.pth"),
        "cpu": {"model": "a CPU", "features": []},
        "table": [
            {
                "variant": "fp32",
                "engine": "cpu",
                "sha256": hashlib.sha256(FP32.content).hexdigest(),
                "megabytes": 2.35,
                "ms_1_thread": 30.12,
                "ms_2_threads": 20.79,
                "top1": 0.7335,
                "agreement": 1.0,
                "clear_agreement": 1.0,
                "max_abs_logit_difference": 0.0,
            },
            {
                "variant": "int8",
                "engine": "cpu",
                "sha256": hashlib.sha256(INT8.content).hexdigest(),
                "megabytes": 1.23,
                "ms_1_thread": 11.46,
                "ms_2_threads": 7.01,
                "top1": 0.7123,
                "agreement": 0.9877,
                "clear_agreement": 0.9988,
                "max_abs_logit_difference": 3.46,
            },
            {
                "variant": "int8",
                "engine": "openvino",
                "sha256": hashlib.sha256(QDQ.content).hexdigest(),
                "megabytes": 1.35,
                "ms_1_thread": 5.68,
                "ms_2_threads": 4.32,
                "top1": 0.7043,
                "agreement": 0.9765,
                "clear_agreement": 0.9877,
                "max_abs_logit_difference": 4.57,
            },
        ],
    }


def test_where_nothing_was_compared_nothing_is_claimed() -> None:
    made = make_report([replace(FP32, comparison=None)], None, None, 224)
    assert made.keys() == {"weights_sha256", "cpu", "table"}
    assert made["weights_sha256"] is None
    assert [(row["variant"], row["top1"], row["agreement"]) for row in made["table"]] == [("fp32", None, 1.0)]


def test_the_table_is_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(make_report([FP32, INT8, QDQ], "abc", None, 224)["table"])
    _, head, fp32, int8, qdq = capsys.readouterr().out.splitlines()
    assert head.split() == [
        "variant",
        "engine",
        "MB",
        "ms",
        "1",
        "thr",
        "ms",
        "2",
        "thr",
        "top-1",
        "agrees",
        "if",
        "clear",
        "max",
        "|Δ",
        "logit|",
    ]
    assert fp32.split() == ["fp32", "cpu", "2.4", "30.1", "20.8", "73.4%", "100.0%", "100.0%", "0.00"]
    assert int8.split() == ["int8", "cpu", "1.2", "11.5", "7.0", "71.2%", "98.8%", "99.9%", "3.46"]
    assert qdq.split() == ["int8", "openvino", "1.4", "5.7", "4.3", "70.4%", "97.7%", "98.8%", "4.57"]
    print_table(make_report([replace(FP32, comparison=None)], None, None, 224)["table"])
    assert capsys.readouterr().out.splitlines()[-1].split()[5] == "–"


class Clock:
    """Replaces `time`; the runs of a model take as many milliseconds as its function returns."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept = 0.0
        self.order: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def session(self, name: str, durations: Callable[[int], float]) -> object:
        clock, runs = self, iter(range(10**6))

        class Session:
            def get_inputs(self) -> list[SimpleNamespace]:
                return [SimpleNamespace(type="tensor(uint8)" if name == "fast" else "tensor(float)")]

            def run(self, outputs: None, inputs: dict[str, npt.NDArray[Any]]) -> None:
                image = inputs["input"]
                assert (image.dtype, image.shape) == (
                    (np.uint8, (1, 4, 4, 3)) if name == "fast" else (np.float32, (1, 3, 4, 4))
                )
                clock.order.append(name)
                clock.now += durations(next(runs)) / 1000

        return Session()


@pytest.mark.parametrize(("cold_ms", "rounds"), [(100, evaluate._ROUNDS), (1000, evaluate._FEWEST_ROUNDS)])
def test_a_time_is_the_median_of_warm_runs_taken_in_turns(
    monkeypatch: pytest.MonkeyPatch, cold_ms: float, rounds: int
) -> None:
    clock = Clock()
    a_round = evaluate._UNTIMED + evaluate._TIMED

    def about_five(run: int) -> float:
        position = run % a_round
        return cold_ms if position < evaluate._UNTIMED else (1, 2, 3, 4, 6, 50, 60, 70)[position - evaluate._UNTIMED]

    asked: list[int] = []

    def open_fake(model: bytes, threads: int) -> object:
        asked.append(threads)
        return clock.session(model.decode(), about_five if model == b"slow" else lambda run: 2.0)

    monkeypatch.setattr(evaluate, "time", clock)
    monkeypatch.setattr(evaluate, "open_session", open_fake)
    assert measure_latency({"a": b"slow", "b": b"fast"}, 4, 2) == pytest.approx({"a": 5.0, "b": 2.0})
    assert asked == [2, 2]
    assert clock.order == (["slow"] * a_round + ["fast"] * a_round) * rounds
    assert clock.slept > 0


def test_a_session_has_the_threads_that_were_asked_for() -> None:
    from tests.tiny_model import tiny_model

    for threads in (1, 2):
        options = open_session(tiny_model(), threads).get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)


def test_class_numbers_are_imagenets() -> None:
    numbers = class_numbers()
    assert len(numbers) == 1000
    assert (numbers["n01440764"], numbers["n15075141"]) == (0, 999)
