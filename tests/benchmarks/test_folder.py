"""`benchmarks/folder.py`: a short run with the small model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import folder
from serve.config.settings import ROOT


def test_a_short_run_prints_rates_and_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = "tests/data/tiny.onnx"
    arguments = ["--photos", str(ROOT / "tests" / "data" / "photos"), "--rounds", "1", "--model", model]
    monkeypatch.setattr(
        sys, "argv", ["folder.py", *arguments, "--timed", "60", "--files", "1100", "--output", str(tmp_path)]
    )
    monkeypatch.setattr(folder, "RUNTIME", sys.executable)
    assert folder.main() == 0
    printed = capsys.readouterr().out
    assert re.search(r"classify [\d.]+ a second, bare engine [\d.]+; ratio \d\.\d{3}", printed)
    assert re.search(r"1100 files at [\d.]+ a second: \d+ MB after a tenth of the time, \d+ at the end", printed)


def test_the_ratio_is_that_of_classify_to_the_bare_engine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bare, ours = iter([{"rate": 100.0}, {"rate": 400.0}, {"rate": 200.0}]), iter([90.0, 60.0, 50.0, 500.0])
    monkeypatch.setattr(folder, "run_bare", lambda options: next(bare))
    monkeypatch.setattr(folder, "run_classify", lambda tree, model: (next(ours), [1.0, 50.0, 60.0] + [55.0] * 17))
    photos = str(ROOT / "tests" / "data" / "photos")
    monkeypatch.setattr(sys, "argv", ["folder.py", "--photos", photos, "--output", str(tmp_path)])
    assert folder.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "classify 60.0 a second, bare engine 200.0; ratio 0.300",
        "rounds: classify 90.0, 60.0, 50.0, bare 100.0, 400.0, 200.0",
        "100000 files at 500.0 a second: 60 MB after a tenth of the time, 55 at the end (-8.3%), 60 at the peak",
    ]
    record = json.loads((tmp_path / "folder.json").read_text())
    assert (record["printed"], record["ratio"], record["shortened"]) == (lines[:3], 0.3, [])


def test_a_run_that_fails_is_no_figure(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "RUNTIME", sys.executable)
    with pytest.raises(SystemExit, match="classify left with 1"):
        folder.run_classify(ROOT / "tests" / "data" / "README.md", "tests/data/tiny.onnx")


def test_it_has_help() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/folder.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "--photos DIR" in done.stdout) == (0, True)
