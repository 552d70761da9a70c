"""Turns an RGB image into the model's input: resize, centre crop, normalise to FP32 `[1, 3, S, S]`.

Pure functions on numpy and Pillow. With `exact=True` the result is bit-exact with torchvision's `ImageClassification`
preset.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from serve.errors import ModelError

INTERPOLATIONS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

_MAX_SIDE: Final = 4096

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing that a model's file specifies.

    Attributes:
        resize: shorter side after resizing, in pixels.
        interpolation: a key of `INTERPOLATIONS`.
        crop: side of the centre crop, in pixels.
        mean: per RGB channel, on the scale where white is 1.
        std: as `mean`.
    """

    resize: int
    interpolation: str
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> "Preprocessing":
        """Reads it from a model card; raises `ModelError` naming an entry that is missing or invalid."""
        try:
            resize, crop, interpolation = card["resize"], card["crop"], card["interpolation"]
            mean, std = card["mean"], card["std"]
        except KeyError as missing:
            raise ModelError(f"its metadata lacks {missing}, which preprocessing needs") from missing
        if not (isinstance(crop, int) and isinstance(resize, int) and 1 <= crop <= resize <= _MAX_SIDE):
            raise ModelError(
                f"its metadata has resize={resize!r} and crop={crop!r}, not pixels with crop ≤ resize ≤ {_MAX_SIDE}"
            )
        if not isinstance(interpolation, str) or interpolation not in INTERPOLATIONS:
            raise ModelError(
                f"its metadata has interpolation={interpolation!r}, not one of {', '.join(INTERPOLATIONS)}"
            )
        for key, values in (("mean", mean), ("std", std)):
            numbers = isinstance(values, list) and all(isinstance(v, int | float) for v in values)
            if not numbers or len(values) != 3 or (key == "std" and not all(v > 0 for v in values)):
                raise ModelError(f"its metadata has {key}={values!r}, not three {'positive ' * (key == 'std')}numbers")
        return cls(resize, interpolation, crop, tuple(mean), tuple(std))

    def to_card(self) -> dict[str, Any]:
        """Returns the entries that `from_card` reads."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def to_input(rgb: Image.Image, spec: Preprocessing, exact: bool = True) -> FloatArray:
    """Returns the model's input, FP32 `[1, 3, crop, crop]`.

    Args:
        exact: False to use `resize_to_crop`, in half the time.
    """
    cropped = center_crop(resize(rgb, spec), spec.crop) if exact else resize_to_crop(rgb, spec)
    return normalise(cropped, spec)


def resized_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Returns the size with the shorter side scaled to `shorter`; the longer is truncated, as torchvision does."""
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def resize(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """Scales the shorter side to `spec.resize`, with Pillow's antialiasing."""
    target = resized_size(image.size, spec.resize)
    return image if target == image.size else image.resize(target, INTERPOLATIONS[spec.interpolation])


def resize_to_crop(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """Resizes and crops in one step, computing only the pixels that are kept, in half the time.

    Pillow stores the box in single precision, so one value in fifty is off by one level of 255, and none by more.
    """
    target = resized_size(image.size, spec.resize)
    if target == image.size:
        return center_crop(image, spec.crop)
    left, top = crop_offset(target, spec.crop)
    across, down = image.width / target[0], image.height / target[1]
    box = (
        left * across,
        top * down,
        min((left + spec.crop) * across, image.width),
        min((top + spec.crop) * down, image.height),
    )
    return image.resize((spec.crop, spec.crop), INTERPOLATIONS[spec.interpolation], box=box)


def crop_offset(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Returns left and top of the centre crop; half a pixel is rounded to even, as by torchvision."""
    return round((size[0] - side) / 2), round((size[1] - side) / 2)


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """Crops the middle `side` × `side` pixels."""
    left, top = crop_offset(image.size, side)
    return image.crop((left, top, left + side, top + side))


def normalise(image: Image.Image, spec: Preprocessing) -> FloatArray:
    """Converts 8-bit RGB to FP32 `[1, 3, height, width]`: `(value / 255 - mean) / std` in each channel."""
    pixels = np.asarray(image)
    planes = np.empty((1, 3, *pixels.shape[:2]), np.float32)
    for channel, table in enumerate(_normalisation_table(spec)):
        np.take(table, pixels[..., channel], out=planes[0, channel], mode="clip")
    return planes


@lru_cache(maxsize=8)
def _normalisation_table(spec: Preprocessing) -> FloatArray:
    """Returns each 8-bit value normalised, FP32 `[3, 256]`, bit-exact by torchvision's order of operations."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = (np.asarray(numbers, np.float32)[:, None] for numbers in (spec.mean, spec.std))
    table: FloatArray = (values - mean) / std
    return table
