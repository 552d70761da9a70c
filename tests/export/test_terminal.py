"""Flags, file names and weights cannot send control sequences to a terminal; the export ends with one line."""

import sys
from pathlib import Path

import pytest
import torch

from tests.terminal import EVIL, control_characters, run

COMMAND = [sys.executable, "export/export_onnx.py"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([f"--{EVIL}"], 2),
        (["--model", EVIL], 2),
        (["--weights", EVIL], 1),
        (["--weights", "a" * 70_000], 1),
        (["--weights", "{weights}"], 1),
        (["--untrained", "--photos", EVIL], 1),
        (["--untrained", "--photos", "{photos}"], 1),
    ],
)
def test_messages_of_an_export(tmp_path: Path, arguments: list[str], expected: int) -> None:
    weights, photos = tmp_path / f"weights{EVIL}.pth", tmp_path / f"photos{EVIL}"
    torch.save({f"key{EVIL}": torch.zeros(1)}, weights)
    photos.mkdir()
    (photos / f"none{EVIL}.jpg").write_text("no picture")
    given = [{"{weights}": str(weights), "{photos}": str(photos)}.get(each, each) for each in arguments]
    status, said = run([*COMMAND, "--output", tmp_path / "model.onnx", *given], on_terminal=True)
    assert (status, control_characters(said)) == (expected, []), said
    assert "Traceback" not in said
    assert not (tmp_path / "model.onnx").exists()
