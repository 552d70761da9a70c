"""The wheel, installed read-only and run from elsewhere."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from serve import __version__
from tests.release.conftest import CAT, TABLE, Installed, listing

MAX_SECONDS_TO_LABEL = 2.0
TOOLS = {
    "uvx": ("uv", "tool", "run", "--from"),
    "pipx": ("pipx", "run", "--no-cache", "--spec"),
}


def test_a_picture_has_its_label_within_two_seconds(installed: Installed) -> None:
    before = listing(installed.site)
    began = time.perf_counter()
    with installed.start("classify", "--jsonl", CAT) as process:
        assert process.stdout
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
        _, error = process.communicate(timeout=30)
    assert process.returncode == 0, error
    assert json.loads(line)["label"] == "Egyptian_cat"
    TABLE.append(f"    start of `densenet-server classify` to the label: {seconds:.2f} s")
    assert seconds <= MAX_SECONDS_TO_LABEL
    assert listing(installed.site) == before
    assert os.listdir(installed.empty) == []  # noqa: PTH208


def test_site_packages_are_read_only(installed: Installed) -> None:
    """Or the test above would show nothing."""
    done = installed.run("-c", f"open({str(installed.site / 'x')!r}, 'w')", program="python")
    assert "PermissionError" in done.stderr


def test_each_command_works(installed: Installed) -> None:
    assert installed.run("--version").stdout == f"densenet-server {__version__}\n"
    assert installed.run("classify", "--version").stdout == f"densenet-server {__version__}\n"
    assert installed.run("--help").stdout.startswith("usage: densenet-server [COMMAND] [--SETTING VALUE ...]")
    settings = installed.run("config").stdout
    assert re.search(r"^decoders +sealed ", settings, re.MULTILINE)
    tuned = installed.run("autotune", "--threads", "1")
    assert (tuned.returncode, tuned.stdout.splitlines()[0][:28]) == (0, "efficientnet_lite0.onnx on 1")
    assert installed.run("autotune", "--write").stderr.startswith("serve: --write needs --config FILE")
    assert installed.run("health", "--port", "1").returncode == 1


def test_it_serves_its_pages_and_classifies(installed: Installed) -> None:
    with installed.start("serve", "--port", "0", "--log-format", "json") as process:
        assert process.stderr
        url = ""
        while not url:
            url = json.loads(process.stderr.readline()).get("url", "")
        assert installed.run("health", "--port", url.rpartition(":")[2]).stdout.startswith("ready: ")
        assert "<html" in fetch(url, accept="text/html")
        assert "<html" in fetch(f"{url}/docs")
        assert json.loads(fetch(f"{url}/openapi.json"))["info"]["version"] == __version__
        assert json.loads(fetch(f"{url}/model"))["name"] == "efficientnet_lite0"
        assert json.loads(fetch(f"{url}/upload", CAT.read_bytes()))["label"] == "Egyptian_cat"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


def fetch(url: str, image: bytes | None = None, accept: str = "*/*") -> str:
    """Requests a page, or sends an image, and returns the response's body."""
    headers = {"Accept": accept, "Content-Type": "image/jpeg"}
    with urllib.request.urlopen(urllib.request.Request(url, image, headers), timeout=10) as response:  # noqa: S310
        body: bytes = response.read()
    return body.decode()


def test_a_model_is_looked_for_in_the_named_folder_and_then_in_the_package(
    installed: Installed, tmp_path: Path
) -> None:
    own = tmp_path / "models"
    own.mkdir()
    shutil.copy(installed.site / "densenet_server" / "models" / "efficientnet_lite0.onnx", own / "mine.onnx")
    flags = ("classify", "--jsonl", CAT, "--model", "mine")
    assert installed.run(*flags, "--models", own).returncode == 0
    assert installed.run(*flags, folder=tmp_path).returncode == 0  # ./models is the default
    missing = installed.run(*flags)
    assert missing.returncode == 2
    assert missing.stderr.startswith("serve: no model mine in models/ or ")
    assert installed.run("classify", CAT, "--model", "efficientnet_lite0", "--models", own).returncode == 0


def test_a_folder_from_elsewhere_changes_nothing(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text('model = "evil.onnx"\n')
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "densenet121.onnx").write_bytes(b"evil")
    for name in ("serve", "densenet_server", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('evil')\n")
    here = installed.run("classify", "--jsonl", CAT, folder=tmp_path)
    assert (here.returncode, here.stdout) == (0, installed.run("classify", "--jsonl", CAT).stdout)


@pytest.mark.parametrize("tool", TOOLS)
def test_it_runs_without_being_installed(tool: str, wheel: Path) -> None:
    began = time.perf_counter()
    program, *arguments = TOOLS[tool]
    command = [str(Path(sys.executable).parent / program), *arguments, str(wheel), "densenet-server", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, f"densenet-server {__version__}\n"), done.stderr
    TABLE.append(f"{' '.join(TOOLS[tool][:2])}: {time.perf_counter() - began:.1f} s to the version")
