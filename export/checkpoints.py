"""Reads the state dict in a checkpoint, without running code from the file.

All functions raise `WeightsError`, whose message names the file and says what to do.
"""

import argparse
import datetime
import pathlib
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import MAGIC_NUMBER, get_unsafe_globals_in_checkpoint, safe_globals

from export.errors import WeightsError
from serve.printable import one_line, shortened

# Where training scripts put the state dict, the most usual first; `model_ema` and `ema` are averages of `model`.
_CONTAINERS: Final = (
    *("state_dict", "model_state_dict", "model", "net", "network", "weights"),
    *("ema", "model_ema", "state_dict_ema", "ema_state_dict", "module"),
)
_MAX_DEPTH: Final = 4
_MAX_EXPANSION: Final = 4
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
_UNPICKLERS_REASON: Final = re.compile(r"WeightsUnpickler error: *(.+)")
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
_MAX_ITEM: Final = 200  # characters


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
        raise WeightsError(f"weights {path.name} are of type {type(content).__name__}, not a state dict; {_SAVE}")
    classes = content.get("class_to_idx")
    is_index = isinstance(classes, Mapping) and all(
        type(name) is str and type(number) is int for name, number in classes.items()
    )
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
    shown = ", ".join(shortened(item, _MAX_ITEM) for item in items[:SHOWN])
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN} more"


def _containers(content: Mapping[str, Any], depth: int = _MAX_DEPTH) -> list[str]:
    """Returns the entries that hold a state dict, best first; a state dict itself has none."""
    return [
        name
        for name in _CONTAINERS
        if isinstance(inner := content.get(name), Mapping)
        and (_has_tensors(inner) or (depth > 1 and _containers(inner, depth - 1)))
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
    if unnamed := [repr(key) for key in content if type(key) is not str]:
        raise WeightsError(f"weights {path.name} have keys that are not text: {listed(unnamed)}; {_SAVE}")
    if unusual := [key for key, value in content.items() if not _is_plain(value)]:
        raise WeightsError(
            f"weights {path.name} have tensors that are quantized, sparse or without values: {listed(unusual)}; save "
            "the weights of the network as it was trained: torch.save(model.state_dict(), 'mine.pth')"
        )
    return dict(content)


def _is_plain(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_quantized and not value.is_meta


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(64)
    if not start.strip():
        raise WeightsError(f"weights {path.name}: the file is empty; copy it again")
    for signature, words in _OTHER_FILES.items():
        if start.lstrip().startswith(signature):
            raise WeightsError(f"weights {path.name}: the file {words}")
    if path.suffix.lower() == ".onnx":
        raise WeightsError(f"weights {path.name}: the file is a model already; serve it with --model")
    if start[8:9] == b"{":  # JSON behind its length
        return _load_safetensors(path)
    if start.startswith(b"PK"):
        _check_zip(path)
    elif MAGIC_NUMBER.to_bytes(10, "little") not in start:  # of PyTorch before 1.6
        raise WeightsError(f"weights {path.name}: the file is neither of torch.save nor safetensors; {_SAVE}")
    try:
        # Warnings are about tensors that are refused below. Of a path, torch would take the suffix for the format.
        with warnings.catch_warnings(action="ignore"), safe_globals(_DATA_CLASSES), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
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


def _check_zip(path: Path) -> None:
    """Checks that a zip archive is complete, is one of `torch.save`, and does not unpack to far more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile raises all kinds of errors on corrupt files
        raise WeightsError(f"weights {path.name}: the file is cut off or damaged; copy or download it again") from error
    if sum(entry.file_size for entry in entries) > _MAX_EXPANSION * path.stat().st_size:
        raise WeightsError(
            f"weights {path.name}: the file unpacks to more than {_MAX_EXPANSION} times its size, and torch.save does "
            f"not compress; {_SAVE}"
        )
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise WeightsError(
            f"weights {path.name} are a TorchScript model, not a state dict; save one:",
            code=(
                "import torch",
                f"model = torch.jit.load({str(path)!r})",
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
    entry = _pickled_container(path) or ("" if is_model else "state_dict")
    return WeightsError(
        f"weights {path.name} hold Python objects besides tensors: {listed(names)}. They are not loaded, because "
        "loading them can run code. If you trust the file, save its state dict alone:",
        code=(
            "import torch",
            f"found = torch.load({str(path)!r}, weights_only=False)" + (f"[{entry!r}]" if entry else ""),
            f"torch.save(found.state_dict() if hasattr(found, 'state_dict') else found, {_target(path)!r})",
        ),
    )


def _pickled_container(path: Path) -> str:
    """Returns which entry of a pickled dictionary probably holds the weights; "" if the file is no such dictionary."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    except zipfile.BadZipFile:  # files of PyTorch before 1.6 are no archives
        return ""
    is_dictionary = content[2:3] == pickle.EMPTY_DICT  # behind the protocol's version
    texts = {name: pickle.BINUNICODE + struct.pack("<I", len(name)) + name.encode() for name in _CONTAINERS}
    return next((name for name, text in texts.items() if is_dictionary and text in content), "")


def _target(path: Path) -> str:
    return f"{path.stem}-state.pth"


def _reason(error: Exception) -> str:
    text = str(error).strip()
    detail = _UNPICKLERS_REASON.search(text)  # in front of it stands how to run the file's code
    return one_line(detail[1] if detail else text.split("\n")[0])[:200] or type(error).__name__
