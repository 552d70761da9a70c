"""Turns the pixels of the model's crop into its input, FP32 `[1, 3, S, S]`, bit-exact with torchvision's preset."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from serve.imaging.preprocess import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

FloatArray = npt.NDArray[np.float32]


def to_input(rgb: "Image.Image", spec: Preprocessing, exact: bool = True) -> FloatArray:
    """Returns an image as the model's input; `exact` as for `resize.crop`."""
    from serve.imaging.resize import crop  # not at the top, because the server's process must load no decoder

    return normalise(crop(rgb, spec, exact).tobytes(), spec)


def normalise(pixels: bytes, spec: Preprocessing) -> FloatArray:
    """Converts 8-bit RGB `[crop, crop, 3]` to FP32 `[1, 3, crop, crop]`: `(value / 255 - mean) / std` by channel."""
    image = np.frombuffer(pixels, np.uint8).reshape(spec.crop, spec.crop, 3)
    planes = np.empty((1, 3, spec.crop, spec.crop), np.float32)
    for channel, table in enumerate(_normalisation_table(spec)):
        np.take(table, image[..., channel], out=planes[0, channel], mode="clip")
    return planes


def denormalise(batch: FloatArray, spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """Returns the pixels `[crop, crop, 3]` that `normalise` made this input of."""
    mean, std = (np.asarray(numbers, np.float32) for numbers in (spec.mean, spec.std))
    pixels: npt.NDArray[np.uint8] = np.rint((batch[0].transpose(1, 2, 0) * std + mean) * 255).astype(np.uint8)
    return pixels


@lru_cache(maxsize=8)
def _normalisation_table(spec: Preprocessing) -> FloatArray:
    """Returns each 8-bit value normalised, FP32 `[3, 256]`, bit-exact by torchvision's order of operations."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = (np.asarray(numbers, np.float32)[:, None] for numbers in (spec.mean, spec.std))
    table: FloatArray = (values - mean) / std
    return table
