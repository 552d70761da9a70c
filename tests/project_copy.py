"""Copies the project as a clone would have it, including what is not committed yet."""

import shutil
import subprocess
from pathlib import Path

from tests.server_process import ROOT


def copy_project(target: Path) -> Path:
    """Copies all files that git tracks or does not ignore; returns `target`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():  # git also lists deleted files
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target
