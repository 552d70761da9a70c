"""The preprocessing that a model's file specifies, and the sizes that follow from it, as torchvision computes them."""

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from serve.errors import ModelError

INTERPOLATIONS: Final = ("nearest", "bilinear", "bicubic")

MAX_SIDE: Final = 4096
_MOST: Final = 1e4  # of means and of standard deviations, whose least is 1 / _MOST; far beyond those in use


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing that a model's file specifies.

    Attributes:
        resize: shorter side after resizing, in pixels.
        interpolation: one of `INTERPOLATIONS`.
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
        if not (isinstance(crop, int) and isinstance(resize, int) and 1 <= crop <= resize <= MAX_SIDE):
            raise ModelError(
                f"its metadata has resize={reprlib.repr(resize)} and crop={reprlib.repr(crop)}, not pixels with "
                f"crop ≤ resize ≤ {MAX_SIDE}"
            )
        if not isinstance(interpolation, str) or interpolation not in INTERPOLATIONS:
            raise ModelError(
                f"its metadata has interpolation={reprlib.repr(interpolation)}, not one of {', '.join(INTERPOLATIONS)}"
            )
        for key, values, least in (("mean", mean, -_MOST), ("std", std, 1 / _MOST)):
            numbers = isinstance(values, list) and all(
                isinstance(value, int | float) and least <= value <= _MOST for value in values
            )
            if not numbers or len(values) != 3:
                raise ModelError(
                    f"its metadata has {key}={reprlib.repr(values)}, not three numbers from {least:g} to {_MOST:g}"
                )
        return cls(resize, interpolation, crop, tuple(mean), tuple(std))

    def to_card(self) -> dict[str, Any]:
        """Returns the entries that `from_card` reads."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def resized_size(size: tuple[float, float], shorter: int) -> tuple[int, int]:
    """Returns the size with the shorter side scaled to `shorter`; the longer is truncated, as torchvision does."""
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def view_size(size: tuple[int, int], longer: int) -> tuple[int, int]:
    """Returns the size with the longer side scaled to `longer`; no side is less than a pixel."""
    scale = longer / max(*size, 1)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def crop_box(size: tuple[float, float], spec: Preprocessing) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom of what the model sees of an image of this size, in its pixels."""
    (width, height), target = size, resized_size(size, spec.resize)
    left, top = crop_offset(target, spec.crop)
    across, down = width / target[0], height / target[1]
    right, bottom = (left + spec.crop) * across, (top + spec.crop) * down
    return left * across, top * down, min(right, width), min(bottom, height)


def crop_offset(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Returns left and top of the centre crop; half a pixel is rounded to even, as by torchvision."""
    return round((size[0] - side) / 2), round((size[1] - side) / 2)
