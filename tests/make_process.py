"""`make` as a newcomer runs it, in a copy of the project."""

import os
import subprocess
import time
from pathlib import Path

import httpx2

from tests.project_copy import copy_of_the_project
from tests.server_process import ROOT

_OF_MAKE = {"WEIGHTS", "PHOTOS", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


def fresh_tree(folder: Path) -> Path:
    """The project's own files as a clone has them, with the environments that are already made."""
    tree = copy_of_the_project(folder)
    (tree / ".venv").symlink_to(ROOT / ".venv")
    return tree


def make(tree: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    # Nothing of the make that runs the tests may reach the one under test: its settings, its jobserver, its depth.
    inherited = {key: value for key, value in os.environ.items() if key not in _OF_MAKE}
    return subprocess.Popen(
        ["make", *arguments],
        cwd=tree,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, which a test can send Ctrl-C to
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
