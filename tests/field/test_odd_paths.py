"""A checkout, and files that a user names, may lie in paths with any characters."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.harness.servers import free_port
from serve.commands import autotune
from serve.config.cpus import cgroup_quota
from tests.make_process import fresh_tree, make, wait_until_ready
from tests.server_process import ROOT
from tests.tiny_model import PATH as TINY_MODEL

BLANK_UMLAUT_QUOTE = "a b/ü'\"x"
ODD = [
    BLANK_UMLAUT_QUOTE,
    "$HOME $(exit 1) `exit 1`",
    "#{x} %s %(y)s ;&|<>!",
    "[a-z]*?~",
    "back\\slash \\040",
    "two\nlines\tand a tab",
    "-n -- colon:comma,equals=",
    "日本語 😀",
    os.fsdecode(b"latin-1 \xfc"),
    " blanks at both ends ",
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh_tree(tmp_path_factory.mktemp("copies") / "clone")


@pytest.fixture(params=ODD)
def tree(copy: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The project in a directory with an odd name."""
    parent = tmp_path / request.param
    parent.mkdir(parents=True)
    moved = copy.rename(parent / "clone")
    yield moved
    moved.rename(copy)


def test_make_serve_serves(tree: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = make(tree, "serve", "MODEL=efficientnet_lite0", f"PORT={port}")
    try:
        wait_until_ready(process, url, 60)
        picture = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
        answer = httpx2.post(f"{url}/upload", files={"file": ("cat.jpg", picture)})
        assert (answer.status_code, answer.json()["label"]) == (200, "Egyptian_cat")
        assert httpx2.get(url, headers={"Accept": "text/html"}).status_code == 200
        health = run(tree, "health", "--port", str(port))
        assert (health.returncode, health.stdout) == (0, f"ready: {url}/readyz\n")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert "decoders sealed" in log
    assert "Traceback" not in log


def test_the_commands_work(tree: Path) -> None:
    config = run(tree, "config")
    rows = {line.split()[0]: line.split()[1:] for line in config.stdout.splitlines()}
    assert (config.returncode, rows["decoders"][0]) == (0, "sealed")
    output = tree.parent / "records.jsonl"
    photos = tree / "tests" / "data" / "photos"
    done = run(tree, "classify", "--model", "efficientnet_lite0", str(photos), "--output", str(output))
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [record["file"] for record in records] == [str(path) for path in sorted(photos.iterdir())]
    assert records[0]["label"] == "Egyptian_cat"


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with the interpreter that the copy has."""
    command = [str(tree / ".venv" / "runtime" / "bin" / "python"), "-m", "serve", *arguments]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", ODD)
def test_files_that_the_settings_name_may_lie_there(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    for source in (TINY_MODEL, ROOT / "imagenet_class_index.json"):
        shutil.copy(source, folder)
    (folder / "keys").write_text("key\n")
    (folder / "own.toml").write_text("port = 0\nlog_format = 'json'\n")
    flags = ["--config", "own.toml", "--model", "tiny.onnx", "--class-index", "imagenet_class_index.json"]
    named = [str(folder / flag) if "." in flag else flag for flag in flags]
    command = [sys.executable, "-m", "serve", *named, "--api-keys-file", str(folder / "keys")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = json.loads(server.stderr.readline())
        server.terminate()
        server.stderr.read()
    assert "tiny (fp32) is ready" in line["message"]
    assert server.returncode == 0


STAND_IN = """\
#!/usr/bin/env python3
import json, os, sys
with open(os.environ["RECORD"], "a") as record:
    print(json.dumps([sys.argv, os.environ.get("WEIGHTS"), os.environ.get("PHOTOS")]), file=record)
if sys.argv[1] == "export/prepare.py":
    print("export ")
"""


@pytest.fixture
def recorded_tree(copy: Path, tmp_path: Path) -> Path:
    """The Makefile with programs that only record how they were called."""
    tree = tmp_path / BLANK_UMLAUT_QUOTE / "clone"
    for name in ("python", ".venv/runtime/bin/python", ".venv/export/bin/python", "docker"):
        program = tree / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(STAND_IN)
        program.chmod(0o755)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(copy / name, tree)
    return tree


def calls(tree: Path, *arguments: str, **environment: str) -> list[tuple[list[str], str, str]]:
    """Returns the arguments of each program that `make` called, and WEIGHTS and PHOTOS in its environment."""
    record = tree / "calls"
    process = make(tree, *arguments, RECORD=str(record), **environment)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    called = [json.loads(line) for line in record.read_text().splitlines()]
    record.unlink()
    return called


@pytest.mark.parametrize("name", [name for name in ODD if "\n" not in name])  # which no recipe of make can have
@pytest.mark.parametrize("from_environment", [False, True])
def test_make_passes_paths_on_as_they_are(name: str, from_environment: bool, recorded_tree: Path) -> None:
    weights, photos, model, index = (f"/{name}/{last}" for last in ("w.pth", "photos", "m.onnx", "simple"))
    python = recorded_tree / name / "python"
    python.parent.mkdir(parents=True)
    shutil.copy(recorded_tree / "python", python)
    paths = {"WEIGHTS": weights, "PHOTOS": photos, "PYTHON": str(python)}
    given: dict[str, Any] = {"environment": paths} if from_environment else {"flags": [*map("=".join, paths.items())]}
    flags, environment = given.get("flags", []), given.get("environment", {})
    flags = [*flags, f"MODEL={model}", f"TORCH_INDEX={index}"]
    called = calls(recorded_tree, "serve", *flags, **environment)
    assert {(call[1], call[2]) for call in called} == {(weights, photos)}
    programs = [(arguments[0], arguments[1]) for arguments, _, _ in called]
    assert programs == [
        (str(python), "requirements/install.py"),
        (str(python), "export/prepare.py"),
        (str(python), "requirements/install.py"),
        (".venv/export/bin/python", "export/export_onnx.py"),
        (".venv/runtime/bin/python", "-m"),
    ]
    assert value_of(called[1][0], "--weights") == value_of(called[3][0], "--weights") == weights
    assert value_of(called[3][0], "--photos") == photos
    assert value_of(called[1][0], "--model") == value_of(called[4][0], "--model") == model
    assert value_of(called[2][0], "--torch-index") == index


def value_of(arguments: list[str], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


@pytest.mark.parametrize("name", ODD)
def test_make_image_copies_weights_of_any_name(name: str, recorded_tree: Path, tmp_path: Path) -> None:
    weights = tmp_path / f"elsewhere/{name}/{name.replace('/', ' ')}.pth"
    weights.parent.mkdir(parents=True)
    weights.write_text("weights")
    called = calls(recorded_tree, "image", f"WEIGHTS={weights}", "DOCKER=./docker", "IMAGE=own")
    build = next(arguments for arguments, _, _ in called if arguments[1] == "build")
    assert f"WEIGHTS={weights.name}" in build
    assert (recorded_tree / "models" / "weights" / weights.name).read_text() == "weights"


def test_make_image_test_builds_the_image_of_no_given_model() -> None:
    def plan(target: str) -> str:
        command = ["make", "--dry-run", target, "MODEL=own.onnx"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "--build-arg MODEL='own.onnx'" in plan("image")
    assert "own.onnx" not in plan("image-test")


@pytest.mark.parametrize("target", ["sev're", 'a"b', "$(exit 1)x", "`exit 1`", "100%s", "ü \\n"])
def test_an_unknown_target_is_named_as_it_is(target: str, copy: Path) -> None:
    process = make(copy, target)
    _, errors = process.communicate(timeout=60)
    assert errors.splitlines()[0] == f"There is no target '{target}'. Run make without a target to list them."


def test_make_runs_no_scripts_of_an_environment(copy: Path) -> None:
    """Their first line is the path of their interpreter, in which no shell's quoting helps against a quote."""
    programs = re.findall(r"\.venv/\w+/bin/([\w-]+)", (copy / "Makefile").read_text(encoding="utf-8"))
    assert set(programs) <= {"python", "ruff", "uv", "hadolint"}  # all but python are compiled
    assert programs.count("python") > 10


def test_the_cpu_quota_of_a_group_whose_name_has_a_blank_is_found(tmp_path: Path) -> None:
    r"""mountinfo has \040 for a blank and \134 for a backslash, cgroup has neither."""
    group = "my group\x85 \\040"
    mount = r"31 23 0:29 /my\040group" + "\x85" + r"\040\134040 /sys/fs/c\040group rw shared:4 - cgroup2 cgroup2 rw"
    files = {
        "proc/self/mountinfo": f"{mount}\n",
        "proc/self/cgroup": f"0::/{group}/in it\n",
        "sys/fs/c group/in it/cpu.max": "150000 100000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert cgroup_quota(tmp_path) == 1.5


@pytest.mark.parametrize("name", ODD)
def test_autotune_names_its_file_so_that_a_shell_understands_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name / "own.toml"
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr(autotune, "measure", lambda *_: [autotune.Choice("streams", "images/s", {1: 1.0}, 1, 1)])
    assert autotune.main(["--write", "--model", str(TINY_MODEL), "--config", str(path)], {}) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.isprintable()
    if str(path).isprintable():
        command = said.rpartition("started with ")[2].removesuffix(".")
        assert shlex.split(command) == ["--config", str(path)]
