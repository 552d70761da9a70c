"""Preprocessing and postprocessing of every peer's server: encoded JPEG → normalised floats, logits → ImageNet id.

Pillow and numpy, equal to torchvision's `Resize(256), CenterCrop(224), ToTensor, Normalize` on fully decoded JPEGs.
With PEER_DRAFT=1 Pillow decodes to at least twice the size that it resizes to, as our server does. Nothing of `serve/`
is used here: a peer's user would not have it, and the results check our server's answers independently.
"""

import io
import json
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

_RESIZE: Final = 256
_CROP: Final = 224
_MEAN: Final = np.array([0.485, 0.456, 0.406], np.float32)
_STD: Final = np.array([0.229, 0.224, 0.225], np.float32)
_CLASS_INDEX: Final = Path(__file__).resolve().parent.parent.parent / "imagenet_class_index.json"

Labels = dict[str, list[str]]


def load_labels() -> Labels:
    """`{"0": ["n01440764", "tench"], …}`."""
    labels: Labels = json.loads(_CLASS_INDEX.read_text(encoding="utf-8"))
    return labels


def preprocess(source: bytes | bytearray | Image.Image, draft: bool | None = None) -> Any:
    """Preprocess an image for the model; arguments are as for `crop`, the result is as of `normalise`."""
    return normalise(crop(source, draft))


def crop(source: bytes | bytearray | Image.Image, draft: bool | None = None) -> Any:
    """Decode an image, encoded or opened by Pillow, resize and crop it.

    Args:
        draft: Decode a JPEG at a reduced scale (default: PEER_DRAFT).

    Returns:
        8-bit RGB `[1, 224, 224, 3]`.
    """
    image = Image.open(io.BytesIO(source)) if isinstance(source, bytes | bytearray) else source
    if draft or (draft is None and os.environ.get("PEER_DRAFT") == "1"):
        image.draft("RGB", (2 * _RESIZE, 2 * _RESIZE))
    image = image.convert("RGB")
    width, height = image.size
    shorter = min(width, height)
    size = (int(_RESIZE * width / shorter), int(_RESIZE * height / shorter))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((image.width - _CROP) / 2), round((image.height - _CROP) / 2)
    return np.asarray(image.crop((left, top, left + _CROP, top + _CROP)))[None]


def normalise(pixels: Any) -> Any:
    """Convert 8-bit RGB `[1, 224, 224, 3]` to FP32 `[1, 3, 224, 224]`, which every model of the peers takes."""
    values = (pixels.astype(np.float32) / 255 - _MEAN) / _STD
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


class Classifier:
    """The model that a peer serves: the file PEER_MODEL, with PEER_THREADS threads for one inference."""

    def __init__(self) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["PEER_THREADS"])
        options.inter_op_num_threads = 1
        self.labels = load_labels()
        self.session = ort.InferenceSession(os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"])
        self.classify(Image.new("RGB", (_RESIZE, _RESIZE)))  # a warm-up

    def classify(self, image: bytes | bytearray | Image.Image) -> dict[str, str]:
        """Preprocess and classify an image, for servers with one stage."""
        return self.classify_input(preprocess(image))

    def classify_input(self, batch: Any) -> dict[str, str]:
        """Classify a preprocessed image."""
        return name_of(self.session.run(["logits"], {"input": batch})[0], self.labels)


def name_of(logits: Any, labels: Labels) -> dict[str, str]:
    """Logits `[1, 1000]` → `imagenet_id` and `label` of the most probable class."""
    imagenet_id, label = labels[str(int(np.argmax(logits[0])))]
    return {"imagenet_id": imagenet_id, "label": label}
