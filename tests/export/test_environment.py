"""`python export/export_onnx.py` starts with any Python: it finds the one that has torch, or says how to get it."""

import shutil
import subprocess
from pathlib import Path

from export.files import ROOT

SCRIPT = "export/export_onnx.py"


def help_of(python: Path, tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, tree / SCRIPT, "--help"], cwd="/", capture_output=True, text=True, check=False)


def test_a_python_without_torch_hands_over_to_the_one_that_has_it(runtime_python: Path) -> None:
    done = help_of(runtime_python, ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python {SCRIPT}")


def test_without_one_that_has_it_the_error_says_how_to_get_it(runtime_python: Path, tmp_path: Path) -> None:
    for folder in ("export", "serve"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    words = f"has no onnx, safetensors, torch, torchvision; 'make export' installs them in {tmp_path}/.venv/export\n"
    done = help_of(runtime_python, tmp_path)
    assert (done.returncode, done.stderr) == (1, f"export: {runtime_python} {words}")
    # If .venv/export lacks them too, it is not started again and again.
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "export").symlink_to(runtime_python.parent.parent)
    done = help_of(tmp_path / ".venv" / "export" / "bin" / "python", tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith(words)
