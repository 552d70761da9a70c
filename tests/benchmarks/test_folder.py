"""`benchmarks/folder.py`: a short run with the small model."""

import re
import subprocess
import sys

import pytest

from benchmarks import folder
from serve.config import ROOT


def test_a_short_run_prints_rates_and_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "tests/data/tiny.onnx"
    arguments = ["--photos", str(ROOT / "tests" / "data" / "photos"), "--rounds", "1", "--model", model]
    monkeypatch.setattr(sys, "argv", ["folder.py", *arguments, "--timed", "60", "--files", "1100"])
    monkeypatch.setattr(folder, "PYTHON", sys.executable)
    assert folder.main() == 0
    printed = capsys.readouterr().out
    assert re.search(r"classify [\d.]+ a second, bare engine [\d.]+; ratio \d\.\d{3}", printed)
    assert re.search(r"1100 files at [\d.]+ a second: \d+ MB after a tenth of the time, \d+ at the end", printed)


def test_a_run_that_fails_is_no_figure(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "PYTHON", sys.executable)
    with pytest.raises(SystemExit, match="classify left with 1"):
        folder.run_classify(ROOT / "tests" / "data" / "README.md", "tests/data/tiny.onnx")


def test_it_has_help() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/folder.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "--photos DIR" in done.stdout) == (0, True)
