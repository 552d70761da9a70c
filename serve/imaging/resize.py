"""Resizes an RGB image and crops its centre with Pillow, bit-exact with torchvision's `ImageClassification` preset."""

import io
from typing import Final

from PIL import Image

from serve.imaging.preprocess import Preprocessing, crop_box, crop_offset, resized_size

_JPEG_QUALITY: Final = 70


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

    Pillow stores the box in single precision, so one value in fifty is off by one level of 255, and none by more.

    Args:
        size: width and height of what the image shows, in its pixels.
    """
    if resized_size(size, spec.resize) == size:
        return center_crop(image, spec.crop)
    return image.resize((spec.crop, spec.crop), resampling_filter(spec), box=crop_box(size, spec))


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """Crops the middle `side` × `side` pixels."""
    left, top = crop_offset(image.size, side)
    return image.crop((left, top, left + side, top + side))
