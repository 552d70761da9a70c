"""Runs `make` in a copy of the project, as after a fresh clone."""

import os
import subprocess
import time
from pathlib import Path

import httpx2

from tests.project_copy import copy_project
from tests.server_process import ROOT

_MAKE_VARIABLES = {"WEIGHTS", "PHOTOS", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
NOWHERE = "http://127.0.0.1:9"  # the discard port, on which nothing listens


def fresh_tree(folder: Path) -> Path:
    """Copies the project's files into a folder, with a link to the existing environments."""
    tree = copy_project(folder)
    (tree / ".venv").symlink_to(ROOT / ".venv")
    return tree


def make(tree: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    # The make that runs the tests must not pass on its settings, job server or recursion depth.
    inherited = {key: value for key, value in os.environ.items() if key not in _MAKE_VARIABLES}
    return subprocess.Popen(
        ["make", *arguments],
        cwd=tree,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # its own process group, so that a test can send it Ctrl-C
    )


def wait_until_ready(process: subprocess.Popen[str], url: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if httpx2.get(f"{url}/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
