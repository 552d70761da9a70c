"""Finds and reads weights and loads them into a network, checking every key.

All functions that read weights raise `WeightsError`, which names the file, the key or the URL.
"""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from export.architectures import ARCHITECTURES, Architecture
from export.checkpoints import listed, read_checkpoint
from export.errors import WeightsError
from export.files import sha256_of
from export.known_weights import KNOWN_WEIGHTS
from export.state_keys import dense_blocks, network_state, with_plain_head

_CONNECT_SECONDS: Final = 10.0
_IN_SEQUENTIAL: Final = re.compile(r"\w+\.\d+\.weight")
_BATCHES_TRACKED: Final = "num_batches_tracked"  # a counter that old checkpoints lack and inference does not use


@dataclass(frozen=True)
class Weights:
    """A state dict and its origin, without paths of this machine.

    state: with the network's own keys. sha256: of the file, None for untrained weights. licence: None if unknown.
    note: which part of the file was read, if it has several. class_to_idx: class name → number, if the file has it.
    """

    state: dict[str, Tensor]
    source: str
    sha256: str | None
    licence: str | None
    trained: bool = True
    note: str = ""
    class_to_idx: dict[str, int] = field(default_factory=dict)

    @property
    def sequential(self) -> bool:
        """Whether the head is a Sequential, whose other layers a state dict does not tell."""
        return any(_IN_SEQUENTIAL.fullmatch(key) for key in self.state)


def read_weights(path: Path) -> Weights:
    """Reads weights from a `.safetensors` file or a file of `torch.save`, without running code from it."""
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise WeightsError(
            f"weights {path}: {(error.strerror or 'unreadable').lower()}; --weights takes a .pth, .pt, .ckpt or "
            ".safetensors file"
        ) from error
    known = KNOWN_WEIGHTS.get(sha256)
    source, licence = (known.source, known.licence) if known else (path.name, None)
    found = read_checkpoint(path)
    try:
        state = network_state(found.state)
    except WeightsError as error:
        raise WeightsError(f"weights {path.name} {error}") from error
    return Weights(state, source, sha256, licence, note=found.note, class_to_idx=found.class_to_idx)


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
    state = network_state(read_checkpoint(cached).state)
    return Weights(state, f"torchvision {enum}", sha256, "BSD-3-Clause")


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


def recognise(weights: Weights) -> Architecture:
    """Returns the architecture that the weights are of, by the layers in its dense blocks.

    Raises:
        WeightsError: they are of none that is known.
    """
    blocks = dense_blocks(weights.state)
    for architecture in ARCHITECTURES.values():
        if blocks and architecture.blocks == blocks:
            return architecture
    of_densenets = [record.name for record in ARCHITECTURES.values() if record.blocks]
    found = (
        f"dense blocks of {', '.join(map(str, blocks))} layers"
        if blocks
        else f"keys such as {next(iter(weights.state))}"
    )
    raise WeightsError(
        f"weights {weights.source} have {found}, which is none of {', '.join(of_densenets)}; "
        "if it is another network that can be exported, name it with --model"
    )


def build_network(architecture: Architecture, weights: Weights) -> nn.Module:
    """Builds the network with these weights and as many classes as they have, in inference mode.

    Raises:
        WeightsError: keys are missing or unexpected, or values have the wrong shape or are not finite.
    """
    try:
        state = with_plain_head(weights.state, architecture.head)
    except WeightsError as error:
        raise WeightsError(f"weights {weights.source} {error}") from error
    network = architecture.build(num_classes=len(state[f"{architecture.head}.weight"]))
    _check_state(architecture.name, weights.source, state, network.state_dict())
    network.load_state_dict(state, strict=False)  # only BatchNorms' batch counters may be missing here
    return network.eval()


def class_count_of(network: nn.Module, architecture: Architecture) -> int:
    """Returns the number of classes of a network."""
    return len(network.get_parameter(f"{architecture.head}.weight"))


def _check_state(name: str, source: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    faults = []
    missing = [key for key in expected if key not in state and not key.endswith(_BATCHES_TRACKED)]
    if missing:
        faults.append(f"missing {listed(missing)}")
    unexpected = [key for key in state if key not in expected]
    if unexpected:
        faults.append(f"unexpected {listed(unexpected)}")
    shapes = [
        f"{key} is {list(state[key].shape)}, but {name} has {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if shapes:
        faults.append(f"wrong shape: {listed(shapes)}")
    not_finite = [
        key
        for key, value in state.items()
        if key in expected
        and value.shape == expected[key].shape
        and value.is_floating_point()
        and not value.float().isfinite().all()
    ]
    if not_finite:
        faults.append(f"not finite, as after a training that diverged: {listed(not_finite)}")
    wrong_types = [
        f"{key} is {value.dtype}"
        for key, value in state.items()
        if key in expected and expected[key].is_floating_point() and not value.is_floating_point()
    ]
    if wrong_types:
        faults.append(f"not floating-point: {listed(wrong_types)}")
    if faults:
        raise WeightsError(
            f"weights {source} do not fit {name}: {'; '.join(faults)}. Needed are floating-point weights of {name}, "
            "unchanged but for its last layer"
        )


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
