"""Mistakes and waits of a newcomer's first minute, and what the project prints for each.

| the newcomer                                       | gets                                                          |
|----------------------------------------------------|---------------------------------------------------------------|
| types `make` alone                                 | the targets and settings                                      |
| has a Python that is too old, or none              | one line with the version needed and how to choose another    |
| has a Python without venv                          | the package to install                                        |
| runs `python -m serve` with another Python         | the Python that has the packages                              |
| has no network                                     | what could not be reached; the embedded model in its place    |
| waits for the network, an installation, a folder   | a line first that says what it waits for                      |
| has no weights, or gives a folder or nothing       | what was tried, and WEIGHTS=PATH                              |
| starts the server twice                            | the port that is in use, and the flag for another             |
| mistypes a target                                  | how to list the targets                                       |
| mistypes a flag, or a model's name                 | the mistake in the last line, on a screen that still shows it |
| gives a folder instead of a file                   | that it is a folder, and what takes folders                   |
| sends `-d` for `-F`, `image` for `file`, no `@`    | the correct curl command                                      |
| sends a file that is no image, or to a wrong path  | the accepted formats, the right path                          |
"""

import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from benchmarks.harness.servers import free_port
from serve.imaging.formats import ACCEPTED_FORMATS
from tests.make_process import NOWHERE, fresh_tree, make, wait_until_ready
from tests.server_process import ROOT, running_server
from tests.tiny_model import PATH as TINY_MODEL


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return fresh_tree(tmp_path / "clone")


def stand_in_python(path: Path, changes: str) -> Path:
    """Writes a Python interpreter that first runs `changes`."""
    code = path.with_name(f"{path.name}.py")
    code.write_text(
        f"import runpy, sys\n{changes}\n"
        "del sys.argv[0]\nsys.path[0] = 'requirements'\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(code))} "$@"\n')
    path.chmod(0o755)
    return path


def serve(*arguments: object) -> tuple[int, list[str]]:
    """Exit status and the lines on standard error of a command that fails."""
    command = [sys.executable, "-m", "serve", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stderr.splitlines()


def test_make_alone_prints_the_targets(tree: Path) -> None:
    process = make(tree)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    for words in ("make serve", "make test", "make export", "make check", "WEIGHTS", "PHOTOS", "PORT"):
        assert words in output


def test_a_mistyped_target_is_named_with_how_to_list_the_targets(tree: Path) -> None:
    process = make(tree, "sevre")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.splitlines()[0] == "There is no target 'sevre'. Run make without a target to list them."


def test_a_python_that_is_too_old_is_refused_with_how_to_choose_another(tree: Path, tmp_path: Path) -> None:
    old = stand_in_python(tmp_path / "python3.8", "sys.version_info = (3, 8, 18, 'final', 0)")
    process = make(tree, "serve", f"PYTHON={old}")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert log.splitlines()[0] == (
        "install: Python 3.11 or newer is needed, this is 3.8; choose another with make PYTHON=python3.12 ..."
    )


def test_a_missing_python_is_named(tree: Path) -> None:
    process = make(tree, "serve", "PYTHON=python3.99")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "python3.99" in log.splitlines()[0]


def test_a_python_without_venv_names_the_package_to_install(tree: Path, tmp_path: Path) -> None:
    (tree / ".venv").unlink()
    bare = stand_in_python(tmp_path / "python3", "sys.modules['ensurepip'] = None")
    process = make(tree, "serve", f"PYTHON={bare}")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (
        log.splitlines()[0] == "install: this Python has no venv module; on Debian and Ubuntu: apt install python3-venv"
    )
    assert not (tree / ".venv").exists()


def test_an_installation_without_a_network_reports_what_failed(tree: Path) -> None:
    (tree / ".venv").unlink()
    settings = {"PIP_INDEX_URL": NOWHERE, "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    process = make(tree, "serve", **settings)
    output, log = process.communicate(timeout=120)
    assert process.returncode == 2
    assert output == "Installing requirements/runtime.txt into .venv/runtime\n"
    assert "install: pip failed; see its message above. Is the package index reachable?" in log
    assert "Traceback" not in log


def test_make_serve_without_weights_or_network_serves_the_embedded_model_with_a_warning(
    tree: Path, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = make(tree, "serve", f"PORT={port}", TORCH_HOME=str(tmp_path), https_proxy=NOWHERE, http_proxy=NOWHERE)
    wait_until_ready(process, url, 60)
    picture = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
    answer = httpx2.post(f"{url}/upload", files={"file": ("cat.jpg", picture)}).json()
    assert answer["model"] == "efficientnet_lite0"
    assert "cat" in answer["label"]
    assert httpx2.get(f"{url}/model").json()["name"] == "efficientnet_lite0"
    process.terminate()
    _, log = process.communicate(timeout=60)
    assert "Serving the small embedded model EfficientNet-Lite0 instead" in log
    assert "DenseNet-121 is not exported; using the small embedded model" in log  # the server's own log says it too


def test_make_serve_of_densenet_without_weights_says_what_to_do(tree: Path, tmp_path: Path) -> None:
    """The hub's cache is empty and the proxy refuses: the one error names what was tried and WEIGHTS=PATH."""
    environment = {"TORCH_HOME": str(tmp_path), "https_proxy": NOWHERE, "http_proxy": NOWHERE}
    process = make(tree, "serve", "MODEL=densenet121", **environment)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 2
    for words in ("densenet121-a639ec97.pth does not exist", "cannot be reached", "make serve WEIGHTS=PATH"):
        assert words in log
    assert "Traceback" not in log
    assert not list((tree / "models").glob("densenet121*"))


def test_a_wait_for_the_network_is_announced(tree: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = make(tree, "serve", TORCH_HOME=str(tmp_path), https_proxy=proxy, http_proxy=proxy)
        began = time.monotonic()
        assert process.stderr is not None
        first = process.stderr.readline()
        waited = time.monotonic() - began
        process.terminate()
        process.communicate(timeout=60)
    assert first.startswith(
        "Checking whether https://download.pytorch.org/models/densenet121-a639ec97.pth can be downloaded"
    )
    assert waited < 2


@pytest.mark.parametrize(("weights", "words"), [("none.pth", "no such file or directory"), ("tests", "is a directory")])
def test_weights_that_are_not_a_file_are_named(tree: Path, weights: str, words: str) -> None:
    process = make(tree, "serve", f"WEIGHTS={weights}")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert log.splitlines()[0] == f"WEIGHTS={weights}: {words}; a state dict (.pth or .safetensors) is needed"


@pytest.mark.parametrize("command", [[], ["classify", "tests"]])
def test_a_python_without_the_packages_says_which_one_has_them(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "serve", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "run 'make serve', or use .venv/runtime/bin/python, which it creates" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_in_use_is_reported_at_once_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        began = time.monotonic()
        status, log = serve("--port", port, "--model", TINY_MODEL)
    assert status == 2
    assert log == [
        f"serve: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --host or --port"
    ]
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prot", "5001"], "unrecognized arguments: --prot 5001"),
        (["5001"], "unknown command '5001'; the commands are serve, classify, autotune, config, health; without one"),
        (["--model", "densenet"], "no model densenet in models/; make one"),
        (["--model", "densenet"], "; make one with 'make export' in a checkout, or choose a file with --model or a"),
        (["--model", "tests"], "model tests is a folder; give an .onnx file ('make export WEIGHTS=PATH' makes one"),
        (["--model", "Makefile"], "model Makefile is not an .onnx file; give an .onnx file"),
        (["--model", TINY_MODEL, "--class-index", "tests"], "class index tests: Is a directory; choose another with"),
        (["--model", TINY_MODEL, "--api-keys-file", "tests"], "API keys file tests: Is a directory"),
        (["--config", "tests"], "settings file tests: is a directory"),
        (["classify"], "the following arguments are required: PATH"),
        (["classify", "--model", TINY_MODEL, "--output", "tests", "Makefile"], "output tests: is a directory"),
        (["classify", "--xml", "tests"], "unrecognized arguments: --xml"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_run_ends_with_the_reason(arguments: list[object], words: str) -> None:
    status, log = serve(*(["--port", "0", *arguments] if str(arguments[0]).startswith("-") else arguments))
    assert status == 2
    assert words in log[-1]
    assert len(log) <= 4  # the usage may come before, but not so much that it hides the rest


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ({"content": b"file=@cat.jpg", "headers": {"Content-Type": "application/x-www-form-urlencoded"}}, 415,
         "The Content-Type 'application/x-www-form-urlencoded' is neither a multipart form nor an image. Send "
         "multipart/form-data with a part named 'file' (curl -F 'file=@cat.jpg')"),
        ({"content": b""}, 415, "The request has no Content-Type. Send multipart/form-data with a part named 'file'"),
        ({"files": {"image": (None, b"cat.jpg")}}, 400,
         "The form has no file: no part has a filename, and none named 'file' has content; the parts sent are named "
         "'image'. "
         "With curl: -F 'file=@cat.jpg'."),
        ({"files": {"file": (None, b"cat.jpg")}}, 400,
         "The part 'file' is the text 'cat.jpg', not a file; with curl, write -F 'file=@cat.jpg'."),
        ({"files": {"file": ("pictures", b"")}}, 400, "The file is empty; curl sends a folder as an empty file, too."),
        ({"files": {"file": ("README.md", b"# densenet-server")}}, 415,
         f"The file is not an image in an accepted format; those are {', '.join(ACCEPTED_FORMATS)}."),
        ({"files": {"file": ("half.jpg", (ROOT / "tests/data/photos/cat.jpg").read_bytes()[:9000])}}, 422, "truncated"),
    ],
    ids=["-d", "-X POST", "-F image= without @", "-F file= without @", "a folder", "no picture", "half a picture"],
)  # fmt: skip
def test_an_invalid_upload_gets_the_correct_curl_command(
    client: TestClient, sent: dict[str, object], status: int, words: str
) -> None:
    answer = client.post("/upload", **sent)  # type: ignore[arg-type]
    assert answer.status_code == status
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(("method", "path"), [("POST", "/"), ("GET", "/uploads"), ("POST", "/upload/cat.jpg")])
def test_a_wrong_path_gets_the_right_one(client: TestClient, method: str, path: str) -> None:
    assert "POST /upload classifies" in client.request(method, path).json()["detail"]


def test_the_start_line_has_a_curl_command() -> None:
    with running_server(sys.executable, "--model", str(TINY_MODEL), "--log-format", "json") as server:
        assert f"try: curl -F 'file=@cat.jpg' {server.url}/upload" in server.log[0]["message"]
