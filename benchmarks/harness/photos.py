"""Prepares the photographs that are sent: their right answers, and a 12-megapixel image."""

import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import CannotMeasure
from benchmarks.harness.machine import ROOT, RUNTIME, child_environment


def prepare_photos(photo: Path, folder: Path | None = None) -> dict[str, Any]:
    """Run `prepare.py` in the server's environment.

    Args:
        photo: The JPEG to send.
        folder: Where to write the 12-megapixel image; without it none is made.

    Returns:
        File, bytes, width, height and `expect` (right ImageNet ids) of `photo`, `unambiguous` and, with a folder,
        `large`.

    Raises:
        CannotMeasure: The photograph cannot be read.
    """
    command = [str(RUNTIME), "-m", "benchmarks.harness.prepare", "--photo", str(photo)]
    command += ["--folder", str(folder)] if folder else []
    done = subprocess.run(command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMeasure(f"the photograph {photo} cannot be prepared:\n{done.stderr.strip()[-800:]}")
    prepared: dict[str, Any] = json.loads(done.stdout)
    return prepared


def describe_photos(photos: dict[str, Any]) -> dict[str, Any]:
    """The photographs as a result records them: with file names, without this machine's folders."""
    return {key: {**entry, "file": Path(entry["file"]).name} for key, entry in photos.items()}
