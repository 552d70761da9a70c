"""Finds a Python that has the packages of the export. Standard library only."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Final, NoReturn

from export.files import ROOT
from serve.printable import one_line

_VENV: Final = ROOT / ".venv" / "export"
_PACKAGES: Final = ("numpy", "onnx", "onnxruntime", "PIL", "safetensors", "torch", "torchvision")


def require_packages(script: str) -> None:
    """Runs `script` again with the Python of .venv/export if this one lacks packages that it needs.

    Where there is no such environment, or it lacks them too, print what to do and exit with status 1.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        python = _VENV / "bin" / "python"
        if not python.is_file() or Path(sys.prefix).resolve() == _VENV.resolve():
            _fail(f"{sys.executable} has no {', '.join(missing)}; 'make export' installs them in {_VENV}")
        os.execv(python, [str(python), script, *sys.argv[1:]])  # noqa: S606


def _fail(reason: str) -> NoReturn:
    print(one_line(f"export: {reason}"), file=sys.stderr)
    sys.exit(1)
