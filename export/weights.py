"""Finds and reads weights and loads them into a network, checking every key.

All functions that read weights raise `WeightsError`, which names the file, the key or the URL.
"""

import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from export.architectures import KNOWN_WEIGHTS, Architecture
from export.errors import WeightsError
from export.files import sha256_of

_CONNECT_SECONDS: Final = 10.0
_SHOWN_KEYS: Final = 5
# In DenseNet checkpoints of 2017 the parts of a dense layer are called norm.1, conv.1, norm.2 and conv.2.
_OLD_DENSE_LAYER_KEY: Final = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])(?=\.)")
_BATCHES_TRACKED: Final = "num_batches_tracked"  # a counter that old checkpoints lack and inference does not use


@dataclass(frozen=True)
class Weights:
    """A state dict and its origin, without paths of this machine.

    sha256: of the file, None for untrained weights. licence: None if unknown.
    """

    state: dict[str, Tensor]
    source: str
    sha256: str | None
    licence: str | None
    trained: bool = True


def read_weights(path: Path) -> Weights:
    """Reads a state dict from a `.safetensors` file or a file of `torch.save`, without running code from it."""
    if not path.is_file():
        raise WeightsError(f"weights {path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    sha256 = sha256_of(path)
    source, licence = KNOWN_WEIGHTS.get(sha256, (path.name, None))
    return Weights(_read_state(path), source, sha256, licence)


def default_weights(architecture: Architecture) -> Weights:
    """Reads the architecture's default weights: a package's file, or torchvision's from torch's cache or a download."""
    enum = architecture.default_weights
    if not isinstance(enum, WeightsEnum):
        return read_weights(enum())
    url = enum.url
    file_name = url.rsplit("/", 1)[-1]
    prefix = file_name.rsplit("-", 1)[-1].split(".")[0]  # file names end with the first 8 digits of the sha256
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if not cached.is_file():
        _download(url, cached, prefix)
    sha256 = sha256_of(cached)
    if not sha256.startswith(prefix):
        raise WeightsError(f"weights {cached}: the sha256 is {sha256}, not {prefix}…; delete the file and try again")
    return Weights(_read_state(cached), f"torchvision {enum}", sha256, "BSD-3-Clause")


def untrained_weights(architecture: Architecture, seed: int) -> Weights:
    """Makes random weights from a seed; BatchNorms get statistics from noise, which keeps activations in range."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = architecture.build()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the plain average over all batches
        network.train()
        with torch.no_grad():
            for _ in range(2):
                network(torch.randn(8, 3, architecture.preprocessing.crop, architecture.preprocessing.crop))
    return Weights(dict(network.state_dict()), f"untrained, seed {seed}", None, None, trained=False)


def build_network(architecture: Architecture, weights: Weights) -> nn.Module:
    """Builds the network with these weights, in inference mode.

    Raises:
        WeightsError: keys are missing or unexpected, or values have the wrong shape or are not finite.
    """
    network = architecture.build()
    state = modern_keys(weights.state)
    expected = network.state_dict()
    _check_state(architecture.name, weights.source, state, expected)
    network.load_state_dict(state, strict=False)  # only BatchNorms' batch counters may be missing here
    return network.eval()


def modern_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames keys of DataParallel (`module.` in front) and of old DenseNet checkpoints (`norm.1`) to today's."""
    return {_OLD_DENSE_LAYER_KEY.sub(r"\1\2", key.removeprefix("module.")): value for key, value in state.items()}


def _check_state(name: str, source: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    faults = []
    missing = [key for key in expected if key not in state and not key.endswith(_BATCHES_TRACKED)]
    if missing:
        faults.append(f"missing {_listed(missing)}")
    unexpected = [key for key in state if key not in expected]
    if unexpected:
        faults.append(f"unexpected {_listed(unexpected)}")
    shapes = [
        f"{key} is {list(state[key].shape)}, but {name} has {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if shapes:
        faults.append(f"wrong shape: {_listed(shapes)}")
    not_finite = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if not_finite:
        faults.append(f"not finite: {_listed(not_finite)}")
    if faults:
        raise WeightsError(f"weights {source} do not fit {name}: {'; '.join(faults)}")


def _listed(items: Iterable[str]) -> str:
    every = list(items)
    shown = ", ".join(every[:_SHOWN_KEYS])
    return shown if len(every) <= _SHOWN_KEYS else f"{shown} and {len(every) - _SHOWN_KEYS} more"


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises all kinds of errors on corrupt files
        raise WeightsError(
            f"weights {path.name} cannot be read as a state dict: the file is corrupt or contains code"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]  # training scripts save it together with the optimizer's state
    if not isinstance(content, Mapping):
        raise WeightsError(f"weights {path.name} contain a {type(content).__name__}, not a state dict")
    not_tensors = [
        f"{key!r} ({type(value).__name__})" for key, value in content.items() if not isinstance(value, Tensor)
    ]
    if not_tensors:
        raise WeightsError(f"weights {path.name} contain values that are not tensors: {_listed(not_tensors)}")
    return dict(content)


def _download(url: str, target: Path, hash_prefix: str) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_CONNECT_SECONDS)  # torch.hub sets no timeout and would wait for ever for a silent host
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), hash_prefix, progress=True)
    except (URLError, HTTPException, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or error
        raise WeightsError(
            f"no weights: {target} does not exist and {url} could not be downloaded ({reason}). "
            "Name a state dict of your own: make serve WEIGHTS=PATH, --weights PATH, or, "
            "for a container image, put one in models/weights"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
