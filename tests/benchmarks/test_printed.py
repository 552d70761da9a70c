"""Runs the commands that print lines, with few rounds or made-up figures."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from benchmarks import decoding, event_loop, queueing, sessions, worker_processes
from benchmarks.harness.figures import spread
from benchmarks.harness.load import Load, run_load
from tests.benchmarks.results import server
from tests.server_process import ROOT

TINY = str(ROOT / "tests/data/tiny.onnx")


def run(main: Callable[[], int], monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> dict[str, Any]:
    """The one result that a command wrote."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments, "--output", str(folder)])
    assert main() == 0
    [file] = folder.glob("*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_decoding_measures_ours_and_the_peers_in_both_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []

    def small(photo: bytes, quality: int) -> bytes:
        asked.append(quality)
        buffer = io.BytesIO()
        Image.open(io.BytesIO(photo)).resize((1200, 1100)).save(buffer, "JPEG", quality=quality)
        return buffer.getvalue()

    monkeypatch.setattr(decoding, "enlarge", small)
    found = run(decoding.main, monkeypatch, tmp_path, "--model", TINY, "--rounds", "2")
    assert asked == [90, 60]
    for ways in found["cpu_ms"].values():
        assert list(ways) == ["ours, exact", "ours, fast", "peers", "peers, draft", "fast of exact"]
        assert all(len(figure["rounds"]) == 2 and figure["min"] > 0 for figure in ways.values())
    assert found["shortened"] == ["--rounds 2"]


def test_each_way_of_decoding_matches_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1200, 3), np.uint8)
    Image.fromarray(noise).resize((4800, 4800)).save(buffer, "JPEG")
    monkeypatch.setattr(decoding, "enlarge", lambda photo, quality: buffer.getvalue())
    decoded: list[tuple[int, int]] = []
    load = JpegImageFile.load

    def noting(image: JpegImageFile) -> Any:
        if image.tile:  # not decoded yet
            decoded.append(image.size)
        return load(image)

    monkeypatch.setattr(JpegImageFile, "load", noting)
    exact, fast = (
        decoding.load_classifier(decoding.Config(model=TINY, decode=way, sandbox="off")) for way in ("exact", "fast")
    )
    spec = fast.preprocessing
    decoding.cpu_times(exact, fast, 90, 1)
    full, reduced, peers, draft = decoded
    assert (full, peers) == ((4800, 4800), (4800, 4800))
    assert reduced[0] < 4800
    assert reduced[0] >= 2 * spec.resize
    assert draft == (600, 600)  # no less than twice 256


@pytest.mark.parametrize(("ratio", "verdict"), [(0.19, "met"), (0.21, "MISSED")])
def test_the_target_of_decoding_is_that_of_the_smaller_file(ratio: float, verdict: str) -> None:
    figures = {"as a camera would save it": {"fast of exact": spread([0.4])}}
    lines = list(decoding.cpu_lines({**figures, "in a file of about 1 MB": {"fast of exact": spread([ratio])}}))
    assert lines[-1] == f"in 1 MB fast takes at most 0.2 of exact: {verdict}"
    assert f"fast of exact  {ratio:.2f}" in lines[-2]


def test_the_stub_server_answers_without_the_models_work(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.event_loop", "--stub", "--model", TINY]
    with (tmp_path / "log").open("w+") as log, subprocess.Popen(command, cwd=ROOT, stderr=log) as server:
        try:
            url = event_loop._url_of(server, log)
            load = Load(f"{url}/upload", event_loop.PHOTO.read_bytes(), seconds=0.1)
            result = run_load(load)
        finally:
            server.terminate()
    assert result["images"] > 0
    assert (result["errors"], result["wrong"]) == (0, 0)


def test_the_memory_of_a_second_session_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sessions, "_LOADED_SECONDS", 0.01)
    resident = iter([100.0, 122.4])
    monkeypatch.setattr(sessions, "resident_megabytes", lambda: next(resident))
    found = run(sessions.main, monkeypatch, tmp_path, str(ROOT / "models/efficientnet_lite0.onnx"), "--rounds", "1")
    assert found["printed"][-1] == "the second session takes 22 MB"
    assert found["second_session_mb"] == 22.4
    assert len(found["printed"]) == 6


def test_resident_memory_is_that_of_this_process() -> None:
    held = np.ones(20_000_000, np.uint8)
    with_it = sessions.resident_megabytes()
    del held
    assert 15 < with_it - sessions.resident_megabytes() < 25


def test_queueing_simulates_the_measured_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    latency = json.loads((ROOT / "benchmarks/results/latency.json").read_text())
    rate = latency["servers"]["ours"]["clients"]["16"]["images_per_s"]["median"]
    assert pytest.approx(latency["machine"]["usable_cpus"] / rate, abs=0.0005) == queueing.SERVICE_SECONDS
    outcome = queueing.Outcome(waits=[0.001 * number for number in range(101)], refused=0, replicas=21)
    monkeypatch.setattr(queueing, "simulate_steady_load", lambda *arguments: outcome)
    monkeypatch.setattr(queueing, "simulate_doubling_load", lambda *arguments: outcome)
    found = run(queueing.main, monkeypatch, tmp_path)
    assert found["printed"][2].split() == ["50", "%", "50", "/", "99", "(0.0%)", *(["50", "/", "99", "(0.0%)"] * 2)]
    assert found["printed"][-1].split() == ["80", "%", *(["0.00%,", "99,", "21"] * 2)]
    assert "machine" not in found
    assert (tmp_path / "queueing.svg").is_file()


def test_worker_processes_compares_one_several_and_one_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: dict[str, tuple[str, ...]] = {}

    def measure(specs: Any, loop: Any, photos: Any, plan: Any, progress: Any) -> tuple[dict[str, Any], list[str]]:
        commands.update({spec.name: spec.command for spec in specs})
        return {name: server(10, 60) for name in commands}, []

    prepared = {"photo": {"file": "rocket.jpg", "expect": "n04266014"}}
    monkeypatch.setattr(worker_processes, "measure_servers", measure)
    monkeypatch.setattr(worker_processes, "prepare_photos", lambda photo: prepared)
    monkeypatch.setattr(worker_processes, "usable_cpus", lambda: 6)
    found = run(worker_processes.main, monkeypatch, tmp_path)
    one, several, bound = commands.values()
    assert list(commands) == ["ours", "ours, --workers 6", "ours, one CPU"]
    assert several == (*one, "--workers", "6")
    assert (bound[:2], bound[3:]) == (("taskset", "-c"), one)
    assert [line.split("  ")[0] for line in found["printed"] if line.startswith("ours, one CPU")] == [
        "ours, one CPU"
    ] * 3
