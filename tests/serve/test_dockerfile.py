"""The Dockerfile's export step, as a shell runs it, with an export that only says how it was called."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.server_process import ROOT

STEP = re.compile(r"target=/root/\.cache/torch \\\n(.*?)\n\n\nFROM scratch AS model-densenet121-auto", re.DOTALL)
EXPORT = """\
#!/bin/sh
for each in "$@"; do echo "$each"; done
mkdir made
: > made/model.onnx
test -n "$GATE_REFUSES" || : > made/model.int8.onnx
test -n "$NO_PLUG_IN" || : > made/model.qdq.onnx
"""


def run_export_step(folder: Path, arguments: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (folder / "weights").mkdir()
    (folder / "weights" / "only.pth").touch()
    (folder / "python").write_text(EXPORT)
    (folder / "python").chmod(0o755)
    (step,) = STEP.findall((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    step = step.replace("/context/", f"{folder}/").replace("/venv/bin/python", str(folder / "python"))
    environment = {"PATH": os.environ["PATH"], "MODEL_VARIANT": "auto", **arguments}
    command = ["sh", "-e", "-c", step.replace("\nARG ENGINE\nRUN ", "\n")]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "called", "made"),
    [
        ({}, "densenet121 --weights only.pth --require-int8", "densenet121.int8.onnx"),
        ({"MODEL_VARIANT": "fp32"}, "densenet121 --weights only.pth", "densenet121.onnx"),
        ({"WEIGHTS": "my net.v2.pth", "LABELS": "l.txt"}, "my net.v2 --weights my net.v2.pth --labels l.txt", "int8"),
        (
            {"WEIGHTS": "a.safetensors", "LABELS": "classes", "PHOTOS": "my photos", "GATE_REFUSES": "1"},
            "a --weights a.safetensors --labels classes --photos my photos",
            "densenet121.onnx",
        ),
        (
            {"LABELS": "l.txt", "NAME": "mine", "MODEL_VARIANT": "int8"},
            "mine --weights only.pth --labels l.txt --require-int8",
            "densenet121.int8.onnx",
        ),
        ({"ENGINE": "openvino"}, "densenet121 --weights only.pth --require-int8", "densenet121.qdq.onnx"),
    ],
)
def test_the_export_gets_weights_labels_and_photographs(
    tmp_path: Path, arguments: dict[str, str], called: str, made: str
) -> None:
    done = run_export_step(tmp_path, arguments)
    assert done.returncode == 0, done.stderr
    script, _, output, _, *words = done.stdout.splitlines()
    assert (script, output) == ("export/export_onnx.py", "made/model.onnx")
    assert " ".join(words).replace(f"{tmp_path}/weights/", "") == called
    (file,) = (tmp_path / "models").iterdir()
    assert made in file.name


def test_where_the_export_makes_no_model_for_openvino_the_build_ends(tmp_path: Path) -> None:
    done = run_export_step(tmp_path, {"ENGINE": "openvino", "NO_PLUG_IN": "1"})
    assert done.returncode == 1
    assert "ENGINE=openvino: the export made no model for OpenVINO; it says above why" in done.stderr
    assert not list((tmp_path / "models").iterdir())


def test_make_image_copies_weights_labels_and_photographs() -> None:
    flags = ["WEIGHTS=/x/my net.pth", "LABELS=/x/labels", "PHOTOS=/x/photos/"]
    # Without the variables of a make that runs this test, which its MAKEFLAGS hand on too.
    own = ("WEIGHTS", "LABELS", "PHOTOS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS")
    environment = {key: value for key, value in os.environ.items() if key not in own}
    shown = [
        subprocess.run(
            ["make", "-n", "image", *given], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout
        for given in (flags, ["PHOTOS=/x/photos"])
    ]
    for name in ("WEIGHTS", "LABELS", "PHOTOS"):
        argument = f'--build-arg {name}="$(basename -- "${name}")"'
        assert [argument in each for each in shown] == [True, False]
    assert 'for path in "$WEIGHTS" "$LABELS" "$PHOTOS"; do' in shown[0]
