"""Turns the pixels of the model's crop into the input of an fp32 model, and back.

An int8 model takes the pixels themselves, 8-bit RGB `[1, S, S, 3]`; an fp32 model takes them normalised, FP32
`[1, 3, S, S]`, bit-exact with torchvision's preset.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from serve.imaging.preprocess import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

FloatArray = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Batch = FloatArray | Pixels  # a model's input


def to_input(rgb: "Image.Image", spec: Preprocessing) -> FloatArray:
    """Returns an image as the model's input."""
    from serve.imaging.resize import crop  # not at the top, because the server's process must load no decoder

    return normalise(crop(rgb, spec).tobytes(), spec)


def as_pixels(pixels: bytes, spec: Preprocessing) -> Pixels:
    """Returns 8-bit RGB `[1, crop, crop, 3]` without copying it."""
    return np.frombuffer(pixels, np.uint8).reshape(1, spec.crop, spec.crop, 3)


def normalise(pixels: bytes, spec: Preprocessing) -> FloatArray:
    """Converts 8-bit RGB `[crop, crop, 3]` to FP32 `[1, 3, crop, crop]`: `(value / 255 - mean) / std` by channel."""
    image = as_pixels(pixels, spec)[0]
    planes = np.empty((1, 3, spec.crop, spec.crop), np.float32)
    for channel, table in enumerate(_normalisation_table(spec)):
        np.take(table, image[..., channel], out=planes[0, channel], mode="clip")
    return planes


def to_pixels(batch: FloatArray, spec: Preprocessing) -> Pixels:
    """Converts FP32 `[N, 3, S, S]` to the nearest 8-bit RGB `[N, S, S, 3]`; exact for what `normalise` returns."""
    mean, std = (np.asarray(numbers, np.float32) for numbers in (spec.mean, spec.std))
    with np.errstate(over="ignore"):
        values = (batch.transpose(0, 2, 3, 1) * std + mean) * 255
    pixels: Pixels = np.rint(values).clip(0, 255).astype(np.uint8)
    return pixels


@lru_cache(maxsize=8)
def _normalisation_table(spec: Preprocessing) -> FloatArray:
    """Returns each 8-bit value normalised, FP32 `[3, 256]`, bit-exact by torchvision's order of operations."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = (np.asarray(numbers, np.float32)[:, None] for numbers in (spec.mean, spec.std))
    table: FloatArray = (values - mean) / std
    return table
