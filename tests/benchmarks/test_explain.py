"""The comparison of explanations with uploads, and of their maps with where objects are."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import explain, pasted
from serve.config.settings import ROOT, Config
from serve.model.classifier import load_classifier
from tests.tiny_model import MAPPED
from tests.tiny_model import PATH as TINY_MODEL

Times = list[tuple[float, float]]


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"benchmarks/{name}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_server_is_measured_and_judged(tmp_path: Path) -> None:
    done = run("explain", "--model", TINY_MODEL, "--rounds", 1, "--count", 3, "--output", tmp_path)
    assert done.returncode in (0, 1), done.stderr
    lines = done.stdout.splitlines()
    for line, kind in zip(lines, ("upload", "explain, JSON", "explain, PNG"), strict=False):
        assert re.match(rf"{kind} +p50 +[\d.]+ ms", line), line
    assert re.match(r"the PNG: [\d.]+ ms for drawing and encoding, of which encoding alone takes [\d.]+ ms", lines[3])
    assert re.fullmatch(r"explain, JSON ≤ 1.1: (met|MISSED), explain, PNG ≤ 2.0: (met|MISSED)", lines[-1])
    assert (tmp_path / "explain.json").exists()


@pytest.mark.parametrize(
    ("as_json", "as_png", "verdict", "status"),
    [(10.9, 19.9, "met met", 0), (11.1, 19.9, "MISSED met", 1), (10.9, 20.1, "met MISSED", 1)],
)
def test_the_status_tells_whether_the_limits_hold(
    as_json: float,
    as_png: float,
    verdict: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = {"upload": [(10.0, 0.0)], "explain, JSON": [(as_json, 0.5)], "explain, PNG": [(as_png, 6.0)]}
    monkeypatch.setattr(explain, "measure", lambda *_: times)
    arguments = ["--model", str(TINY_MODEL), "--rounds", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["explain", *arguments])
    assert explain.main() == status
    printed = capsys.readouterr().out
    assert " ".join(re.findall("met|MISSED", printed)) == verdict
    assert "the PNG: 5.50 ms" in printed


def plain(color: str, path: Path) -> Path:
    Image.new("RGB", (300, 300), color).save(path, "JPEG", quality=95)
    return path


@pytest.mark.parametrize("corner", range(4))
def test_a_square_of_the_class_is_found_in_every_corner(corner: int, tmp_path: Path) -> None:
    """The model's classes are colours, so all of a map's positive values lie in and around the square."""
    red, blue = plain("red", tmp_path / "red.jpg"), plain("blue", tmp_path / "blue.jpg")
    classifier = load_classifier(Config(model=str(MAPPED)))
    found = pasted.gain(classifier, red, blue, 0, corner)
    assert pasted.gain(classifier, red, blue, 2, corner) < 1 < 2 < found < 1 / 0.4**2 + 0.1
    classifier.close()


def test_the_overlap_of_a_place_is_the_part_of_it_that_lies_inside() -> None:
    np.testing.assert_allclose(pasted.overlap(4, 0.125, 0.5), [0.5, 1, 0.5, 0])
    np.testing.assert_allclose(pasted.overlap(7, 0, 1), np.ones(7))


def test_photographs_are_pasted_and_judged(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n01443537", "n01484850"):
        plain("red", tmp_path / f"{wnid}_x.JPEG")
    plain("red", tmp_path / "other.JPEG")
    arguments = ("--photos", tmp_path, "--model", TINY_MODEL, "--output", tmp_path / "out")
    done = run("pasted", *arguments)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.startswith("tiny, fp32: 3 pictures, positive values inside the pasted square ")
    assert re.fullmatch(r"[\d.]+ ≥ 2: (met|MISSED)", done.stdout.splitlines()[-1])
    empty = run("pasted", "--photos", tmp_path / "out", "--model", TINY_MODEL, "--output", tmp_path / "out")
    assert (empty.returncode, empty.stderr) == (
        2,
        f"pasted: no photographs named like <wnid>_<label>.JPEG in {tmp_path}/out\n",
    )
