"""Resizes an RGB image and crops its centre with Pillow, bit-exact with torchvision's `ImageClassification` preset."""

import io
from typing import Final

from PIL import Image

from serve.imaging.preprocess import Preprocessing, crop_box, crop_offset, resized_size

_JPEG_QUALITY: Final = 70
# How far Pillow's filters reach, in pixels of what they make, or of what they read if those are larger.
_REACH: Final = {Image.Resampling.NEAREST: 0.5, Image.Resampling.BILINEAR: 1.0, Image.Resampling.BICUBIC: 2.0}


def crop_bytes(rgb: Image.Image, size: tuple[float, float], spec: Preprocessing, exact: bool, jpeg: bool) -> bytes:
    """Returns the model's crop as 8-bit RGB `[crop, crop, 3]`, or as a JPEG file padded with zeros to that length.

    Args:
        size: as in `Upright`.
    """
    cropped = crop(rgb, spec) if exact else resize_to_crop(rgb, size, spec)
    if not jpeg:
        return cropped.tobytes()
    buffer = io.BytesIO()
    cropped.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue().ljust(spec.crop**2 * 3, b"\0")


def crop(rgb: Image.Image, spec: Preprocessing) -> Image.Image:
    """Returns the model's crop of an image."""
    return center_crop(resize(rgb, spec), spec.crop)


def resampling_filter(spec: Preprocessing) -> Image.Resampling:
    """Returns Pillow's filter for the specified interpolation."""
    return Image.Resampling[spec.interpolation.upper()]


def resize(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """Scales the shorter side to `spec.resize`, with Pillow's antialiasing."""
    target = resized_size(image.size, spec.resize)
    return image if target == image.size else image.resize(target, resampling_filter(spec))


def resize_to_crop(image: Image.Image, size: tuple[float, float], spec: Preprocessing) -> Image.Image:
    """Resizes and crops in one step, computing only the pixels that are kept, in half the time.

    Pillow stores the box in single precision, and resizes the columns of a tall image before its rows. So one value in
    fifty is off by one level of 255, and none by more; by two with bicubic interpolation.

    Args:
        size: width and height of what the image shows, in its pixels; rows from `lowest_row` on may be missing.
    """
    if (target := resized_size(size, spec.resize)) == size:
        return _cut(image, crop_offset(target, spec.crop), spec.crop)
    return image.resize((spec.crop, spec.crop), resampling_filter(spec), box=crop_box(size, spec))


def lowest_row(size: tuple[float, float], spec: Preprocessing) -> float:
    """Returns where the rows end that `resize_to_crop` needs; size: as there."""
    step = size[1] / resized_size(size, spec.resize)[1]
    return crop_box(size, spec)[3] + 1 + _REACH[resampling_filter(spec)] * max(step, 1.0)


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """Crops the middle `side` × `side` pixels."""
    return _cut(image, crop_offset(image.size, side), side)


def _cut(image: Image.Image, offset: tuple[int, int], side: int) -> Image.Image:
    left, top = offset
    return image.crop((left, top, left + side, top + side))
