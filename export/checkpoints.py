"""Reads the state dict in a checkpoint, without running code from the file.

All functions raise `WeightsError`, whose message names the file and says what to do.
"""

import argparse
import datetime
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from export.errors import WeightsError
from serve.printable import one_line

# Where training scripts put the state dict, the most usual first; `model_ema` and `ema` are averages of `model`.
_CONTAINERS: Final = (
    *("state_dict", "model_state_dict", "model", "net", "network", "weights"),
    *("ema", "model_ema", "state_dict_ema", "ema_state_dict", "module"),
)
_MAX_DEPTH: Final = 4
# Plain data that training scripts save beside the weights. A path of either system becomes one that touches no file.
_DATA_CLASSES: Final[list[Any]] = [
    argparse.Namespace,
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
    *(pathlib.PurePath, pathlib.PurePosixPath, pathlib.PureWindowsPath),
    *(
        (pathlib.PureWindowsPath if "Windows" in name else pathlib.PurePosixPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")  # Python 3.13's name
        for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
]
_UNSAFE_GLOBAL: Final = re.compile(r"GLOBAL ([\w.]+)")
# What files begin with that are taken for weights.
_OTHER_FILES: Final = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself; fetch the file with 'git lfs pull'",
    b"<": "is a web page, not weights; download the file itself",
    b"\x89HDF": "is HDF5, as Keras writes it; only PyTorch's weights can be exported",
    b"GGUF": "is GGUF; only PyTorch's weights can be exported",
}
_SAVE: Final = "save the weights where they were made: torch.save(model.state_dict(), 'mine.pth')"
SHOWN: Final = 5


@dataclass(frozen=True)
class Checkpoint:
    """What was found in a file.

    state: the state dict. note: which entry it was, if the file has several. class_to_idx: class name → class number,
    if the training script saved it.
    """

    state: dict[str, Tensor]
    note: str = ""
    class_to_idx: dict[str, int] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a `.safetensors` file or a file of `torch.save`.

    Raises:
        WeightsError: the file cannot be read, holds more than data, or has no state dict.
    """
    content = _load(path)
    if not isinstance(content, Mapping):
        raise WeightsError(f"weights {path.name} contain a {type(content).__name__}, not a state dict; {_SAVE}")
    classes = content.get("class_to_idx")
    is_index = isinstance(classes, Mapping) and all(type(number) is int for number in classes.values())
    notes = []
    for _ in range(_MAX_DEPTH):
        inner = _containers(content)
        if not inner:
            break
        notes.append(f"its entry {inner[0]!r}" + (f", not {', '.join(map(repr, inner[1:]))}" if inner[1:] else ""))
        content = content[inner[0]]
    return Checkpoint(_state_of(content, path), ", ".join(notes), dict(classes) if is_index and classes else {})


def listed(items: list[str]) -> str:
    """Returns the first few items, and how many more there are."""
    shown = ", ".join(items[:SHOWN])
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN} more"


def _containers(content: Mapping[str, Any]) -> list[str]:
    """Returns the entries that hold a state dict, best first; a state dict itself has none."""
    return [
        name
        for name in _CONTAINERS
        if isinstance(content.get(name), Mapping) and (_has_tensors(content[name]) or _containers(content[name]))
    ]


def _has_tensors(content: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _state_of(content: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    others = [f"{key!r} ({type(value).__name__})" for key, value in content.items() if not isinstance(value, Tensor)]
    if others and not _has_tensors(content):
        raise WeightsError(f"weights {path.name} have no state dict, only {listed(others)}; {_SAVE}")
    if others:
        raise WeightsError(f"weights {path.name} contain values that are not tensors: {listed(others)}; {_SAVE}")
    if not content:
        raise WeightsError(f"weights {path.name} are an empty state dict; {_SAVE}")
    return dict(content)


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if not start:
        raise WeightsError(f"weights {path.name}: the file is empty; copy it again")
    for signature, words in _OTHER_FILES.items():
        if start.startswith(signature):
            raise WeightsError(f"weights {path.name}: the file {words}")
    if path.suffix.lower() == ".onnx":
        raise WeightsError(f"weights {path.name}: the file is a model already; --weights takes a state dict")
    if path.suffix.lower() == ".safetensors":
        return _load_safetensors(path)
    _check_zip(path, start)
    try:
        with safe_globals(_DATA_CLASSES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except Exception as error:  # torch's unpickler raises all kinds of errors on corrupt files
        raise WeightsError(f"weights {path.name} cannot be read as a state dict: {_reason(error)}; {_SAVE}") from error


def _load_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"weights {path.name} cannot be read as safetensors: {_reason(error)}; copy or save the file again"
        ) from error


def _check_zip(path: Path, start: bytes) -> None:
    """Checks that a zip archive is complete and is one of `torch.save`."""
    if not start.startswith(b"PK"):
        return
    if not zipfile.is_zipfile(path):
        raise WeightsError(f"weights {path.name}: the file is cut off; copy or download it again")
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        raise WeightsError(
            f"weights {path.name} are a TorchScript model, not a state dict; save one:",
            code=(
                "import torch",
                f"model = torch.jit.load({path.name!r})",
                f"torch.save(model.state_dict(), {_target(path)!r})",
            ),
        )
    if "data.pkl" not in names:
        raise WeightsError(f"weights {path.name}: the file is a zip archive, but not one of torch.save; {_SAVE}")


def _refusal(path: Path, error: pickle.UnpicklingError) -> WeightsError:
    """Returns the error for a file with Python objects besides plain data, or one that is no pickle."""
    try:
        with safe_globals(_DATA_CLASSES):
            names = sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it reads zip archives only
        names = []
    names = names or _UNSAFE_GLOBAL.findall(str(error))
    if not names:
        return WeightsError(f"weights {path.name} cannot be read as a state dict: {_reason(error)}; {_SAVE}")
    is_model = any(name.startswith("torch.nn.") for name in names)
    content, state = ("model", "model.state_dict()") if is_model else ("checkpoint", 'checkpoint["state_dict"]')
    return WeightsError(
        f"weights {path.name} hold Python objects besides tensors: {listed(names)}. They are not loaded, because "
        "loading them can run code. If you trust the file, save its state dict alone:",
        code=(
            "import torch",
            f"{content} = torch.load({path.name!r}, weights_only=False)",
            f"torch.save({state}, {_target(path)!r})",
        ),
    )


def _target(path: Path) -> str:
    return f"{path.stem}-state.pth"


def _reason(error: Exception) -> str:
    return one_line(str(error).strip().split("\n")[0])[:200] or type(error).__name__
