"""Starts a command that was run by its path, `python benchmarks/NAME.py`, with any Python from 3.11."""

import os
import sys
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[2]
_LOCK_FILES: Final = {
    "runtime": "requirements/runtime.txt",
    "export": "requirements/export.txt requirements/benchmark.txt",
}


def start(environment: str = "") -> None:
    """Make the project importable; run the command again in `.venv/ENVIRONMENT` where it needs packages from there.

    Exits with 2 and the command that makes the environment where it is missing.
    """
    sys.path[0] = str(_ROOT)  # in place of benchmarks/, whose modules must not be found by their bare names
    folder = _ROOT / ".venv" / environment
    if not environment or Path(sys.prefix).resolve() == folder.resolve():
        return
    python = folder / "bin/python"
    if not python.is_file():
        name, install = Path(sys.argv[0]).stem, f"python3 requirements/install.py .venv/{environment}"
        message = f"{name}: .venv/{environment} is missing; make it with {install} {_LOCK_FILES[environment]}"
        print(message, file=sys.stderr)
        sys.exit(2)
    os.execv(python, [str(python), *sys.orig_argv[1:]])  # noqa: S606  a list of arguments, without a shell
