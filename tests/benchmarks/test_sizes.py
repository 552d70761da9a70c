"""benchmarks/sizes.py: sizes of packages with their dependencies, the chart, and a machine without Docker."""

import json
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

from benchmarks import sizes
from benchmarks.reporting.plots import draw_sizes
from tests.benchmarks.results import result
from tests.server_process import ROOT


def test_packages_are_measured_with_their_dependencies() -> None:
    alone = sizes.packages_megabytes(Path(sys.executable), ("anyio",))
    with_what_it_needs = sizes.packages_megabytes(Path(sys.executable), ("starlette",))
    assert 0.1 < alone < with_what_it_needs < 20
    with pytest.raises(subprocess.CalledProcessError):
        sizes.packages_megabytes(Path(sys.executable), ("no-such-package",))


def test_the_chart_begins_with_the_smallest() -> None:
    megabytes = {"baseline": 4918.0, "ours": 143.0, "mosec": 318.0}
    report = {**result({}), "base": "python:3.11-slim", "base_mb": 124.0, "megabytes": megabytes}
    chart = xml.etree.ElementTree.fromstring(draw_sizes(report))
    texts = [each.text for each in chart.iter() if each.tag.endswith("text")]
    assert [text for text in texts if text in ("ours", "Mosec", "baseline")] == ["ours", "Mosec", "baseline"]
    assert [text for text in texts if text and text.endswith(" MB")] == ["143 MB", "318 MB", "4918 MB"]
    assert "MB, uncompressed" in texts


def test_the_baseline_is_named_after_the_torch_that_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    builds = {"one": {"torch": "2.14.1+cpu", "cuda": None}, "other": {"torch": "2.14.1+cu130", "cuda": "13.0"}}
    weighed = {"one": 600.0, "other": 4600.0}
    monkeypatch.setattr(sizes, "image_megabytes", lambda name: {"ours:1": 150.0, "base:1": 120.0}[name])
    monkeypatch.setattr(sizes, "torch_build", lambda python: builds[python.name])
    monkeypatch.setattr(sizes, "packages_megabytes", lambda python, packages: weighed[python.name])
    monkeypatch.setattr(sizes, "PEERS", {})
    monkeypatch.setattr(sizes, "ROOT", tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/densenet121.int8.onnx").write_bytes(b"")
    (tmp_path / "weights.pth").write_bytes(b"0" * 30_000_000)
    arguments = ["--image", "ours:1", "--base", "base:1", "--weights", str(tmp_path / "weights.pth")]
    arguments += ["--torch", "one", "other", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["sizes.py", *arguments])
    assert sizes.main() == 0
    record = json.loads((tmp_path / "sizes.json").read_text())
    assert record["megabytes"] == {
        "ours": 150.0,
        "baseline, torch 2.14.1, CPU build": 750.0,
        "baseline, torch 2.14.1, CUDA 13.0 build": 4750.0,
    }
    assert record["printed"] == capsys.readouterr().out.splitlines()[:3]
    assert "5.0 times" in record["printed"][1]
    assert "120 MB of base:1" in (tmp_path / "sizes.svg").read_text()


def test_without_an_engine_it_says_so_in_a_line() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/sizes.py", "--weights", "none.pth"],
        cwd=ROOT,
        env={"DOCKER": "/nonexistent/docker"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("sizes: ")
    assert done.stderr.count("\n") == 1
