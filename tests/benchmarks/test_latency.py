"""Starts the commands as a user does, without measuring."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import installed
from benchmarks.harness.installed import OURS
from tests.benchmarks.results import result, server
from tests.server_process import ROOT


@pytest.fixture
def bare_clone(tmp_path: Path) -> Path:
    """The project without environments, models and weights."""
    for folder in ("benchmarks", "export", "serve", "tests/data/photos"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "results"))
    return tmp_path


def run(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(clone)}
    for name in ("WEIGHTS", "PHOTOS", "TORCH_HOME", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)


def test_without_the_environments_it_says_what_to_install(bare_clone: Path) -> None:
    done = run(bare_clone, "benchmarks/latency.py")
    assert done.returncode == 1
    assert "requirements/install.py .venv/runtime requirements/runtime.txt" in done.stdout
    assert "requirements/install.py .venv/export requirements/export.txt requirements/benchmark.txt" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_peers_say_that_the_export_comes_first(bare_clone: Path) -> None:
    done = run(bare_clone, "benchmarks/peers.py", "--peers", "mosec", "--no-install")
    assert done.returncode == 1
    assert "DenseNet-121 has to be exported first" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_results_are_compared_without_measuring(tmp_path: Path) -> None:
    files = []
    for name, one in (("old", 20.0), ("new", 10.0)):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(result({OURS: server(one, 60)})))
    done = run(ROOT, "benchmarks/latency.py", "--compare", *map(str, files))
    assert done.returncode == 0
    assert "ours, clients: 1, p50_ms" in done.stdout


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    done = run(ROOT, "benchmarks/latency.py", "--compare", str(other), str(other))
    assert done.returncode == 1
    assert "other.json is not a result" in done.stderr


@pytest.mark.parametrize(
    "command",
    [["benchmarks/latency.py"], ["benchmarks/peers.py"], ["-m", "benchmarks.harness.load"]],
    ids=lambda command: command[-1],
)
def test_each_command_has_help(command: list[str]) -> None:
    done = run(ROOT, *command, "--help")
    assert done.returncode == 0
    assert "--photo" in done.stdout


def test_weights_that_are_not_there_are_named() -> None:
    done = run(ROOT, "benchmarks/latency.py", "--weights", "absent.pth")
    assert done.returncode == 2
    assert "absent.pth: no such file" in done.stderr


@pytest.mark.parametrize(
    ("packages", "file", "vnni", "missing"),
    [
        ({"onnxruntime-ep-openvino": "1.8.1"}, True, True, ""),
        ({"onnxruntime": "1.32.0"}, True, True, "install.py .venv/openvino requirements/openvino.txt"),
        ({"onnxruntime-ep-openvino": "1.8.1"}, False, True, "none.qdq.onnx is missing; make export"),
        ({"onnxruntime-ep-openvino": "1.8.1"}, True, False, "it is not used on CPUs without VNNI"),
    ],
)
def test_openvino_is_measured_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, packages: dict[str, str], file: bool, vnni: bool, missing: str
) -> None:
    monkeypatch.setattr(installed, "versions", lambda python, names: packages)
    monkeypatch.setattr(installed, "describe_machine", lambda: {"vnni": vnni})
    monkeypatch.setattr(installed, "_MODEL_QDQ", Path(__file__) if file else Path("none.qdq.onnx"))
    found = installed.Installed()
    installed._find_openvino(found)
    if missing:
        assert (found.engines, found.servers) == ([], [])
        assert missing in "".join(found.missing)
    else:
        assert [engine.name for engine in found.engines] == [installed.PLUG_IN]
        [server] = found.servers
        assert server.name == installed.OURS_OPENVINO
        assert server.command[0] == str(installed.OPENVINO)
        assert server.settings == "as it is by default, one process --engine openvino --engine-cache engine-cache"
