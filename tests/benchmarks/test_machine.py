"""What results record: the environment of child processes, the state of the tree, the baseline's torch."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.machine import child_environment, describe_torch, provenance, torch_build, tree_state


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    for name in ("code.py", "README.md", "benchmarks/results/latency.json"):
        (tmp_path / name).write_text("1")
    (tmp_path / ".gitignore").write_text("build/\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "First")
    return tmp_path


def test_children_get_this_environment_without_settings_of_threads_and_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    leftovers = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "SERVE_THREADS", "PEER_DRAFT")
    for name in (*leftovers, "PYTHONPATH"):
        monkeypatch.setenv(name, "1")
    off = {
        "ORT_DISABLE_TELEMETRY": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "OTEL_SDK_DISABLED": "true",
        "DO_NOT_TRACK": "1",
    }
    dropped = ("OMP_", "MKL_", "OPENBLAS_", "SERVE_", "PEER_", "PYTHONPATH", "PYTHONSTARTUP", "WERKZEUG_", "FLASK_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    assert child_environment() == {**kept, **off}


def test_a_commit_without_changes_is_clean(clone: Path) -> None:
    assert tree_state(clone) == {"revision": git(clone, "rev-parse", "--short", "HEAD"), "tree": "clean"}


@pytest.mark.parametrize("name", ["code.py", "new.py"])
def test_a_changed_file_or_a_new_one_makes_it_dirty(clone: Path, name: str) -> None:
    (clone / name).write_text("2")
    assert tree_state(clone)["tree"] == "dirty"


def test_what_the_commands_write_themselves_does_not(clone: Path) -> None:
    for name in ("README.md", "benchmarks/results/latency.json", "benchmarks/results/latency.svg"):
        (clone / name).write_text("2")
    (clone / "build").mkdir()
    (clone / "build/model.onnx").write_text("2")
    assert tree_state(clone)["tree"] == "clean"


def test_outside_of_a_clone_the_commit_is_not_known(tmp_path: Path) -> None:
    assert tree_state(tmp_path) == {"revision": "", "tree": "unknown"}


def test_a_result_tells_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["latency.py", "--weights", "../a/w.pth", "--photo", "/b/p.jpg", "--rounds", "2"])
    command = provenance("latency")["command"]
    assert command == "python benchmarks/latency.py --weights w.pth --photo p.jpg --rounds 2"


@pytest.mark.parametrize(("cuda", "words"), [("13.0", "CUDA 13.0 build"), (None, "CPU build")])
def test_the_build_of_torch_is_asked_of_torch_itself(
    cuda: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, installed = tmp_path / "torch", tmp_path / "torch-2.14.1.dist-info"
    for folder in (package, installed):
        folder.mkdir()
    (package / "__init__.py").write_text(
        f"class version: cuda = {cuda!r}\n__version__ = '2.14.1+here'\n".ljust(2_000_000)
    )
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.14.1\n")
    (installed / "RECORD").write_text("torch/__init__.py,,\n")
    python = tmp_path / "python"  # stands for an environment with this torch
    python.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(tmp_path))} exec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    build = torch_build(python)
    assert build == {"torch": "2.14.1+here", "cuda": cuda, "megabytes": 2.0}
    assert describe_torch(build) == f"torch 2.14.1, {words}"
