"""The project's own files in another folder, as a clone has them with what is not committed yet."""

import shutil
import subprocess
from pathlib import Path

from tests.server_process import ROOT


def copy_of_the_project(target: Path) -> Path:
    """Copy what git tracks or would, and nothing that it ignores; returns `target`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():  # one that was deleted is still listed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target
