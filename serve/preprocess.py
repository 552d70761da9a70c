"""Encoded picture → header check → upright RGB → resize → centre crop → normalised FP32 `[1, 3, S, S]`.

Pure functions on numpy and Pillow, bit-exact with torchvision's `ImageClassification` preset on what its usual loader,
`Image.open(file).convert("RGB")`, gives. Two stated exceptions: EXIF orientation is applied (unless turned off), and
16-bit grey is scaled to 8 bits where Pillow would clip it to white.

Errors that leave here: `UnsupportedFormat`, `UndecodableImage`, `TooManyPixels`.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

# All the plug-ins that are ever used, imported here so that Pillow never goes looking for its forty others.
from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin  # noqa: F401  isort: skip
from PIL import PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401  isort: skip

from serve.errors import ModelError, TooManyPixels, UndecodableImage, UnsupportedFormat

ACCEPTED_FORMATS: Final = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF")

# How a file of each format begins. BMP's two letters alone would claim plain text, so the size of its second header
# (the known versions of BITMAPINFOHEADER) is looked at too.
_SIGNATURES: Final = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),
    "TIFF": re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"),
    "AVIF": re.compile(rb".{4}ftyp(.{4})*?avi[fs]", re.DOTALL),
}
_SIGNATURE_BYTES: Final = 64

# Pillow's own bomb guard knows one limit for the whole process; `open_image` applies ours, which is a setting.
Image.MAX_IMAGE_PIXELS = None
# Decoding belongs to the thread that asks for it; by itself the AV1 decoder would start one for each CPU.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_INTERPOLATIONS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

_MAX_SIDE: Final = 4096

# JPEG's markers (ITU-T T.81, table B.1); ordinary files have ten or twenty segments before their pixels.
_START_OF_SCAN: Final = b"\xff\xda"
_FIRST_MARKER_WITH_LENGTH: Final = 0xC0
_QUICK_SEGMENTS: Final = 64

# A reduced JPEG keeps this many times the side it is then resized to, as Pillow's own `thumbnail` does. With less, what
# aliases in so small a picture shows in the answers: docs/serving.md has the figures.
_REDUCED_TO: Final = 2

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Preprocessing:
    """What a model wants to be fed, as its file says.

    resize: shorter side after resizing, pixels. interpolation: a key of `_INTERPOLATIONS`. crop: side of the centre
    crop, pixels. mean, std: per channel, RGB, on the scale where white is 1.
    """

    resize: int
    interpolation: str
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> "Preprocessing":
        """Read it from a model card; raises `ModelError` naming the entry that is missing or makes no sense."""
        try:
            resize, crop, interpolation = card["resize"], card["crop"], card["interpolation"]
            mean, std = card["mean"], card["std"]
        except KeyError as missing:
            raise ModelError(
                f"its metadata lacks {missing}, so it cannot say how pictures become its input"
            ) from missing
        if not (isinstance(crop, int) and isinstance(resize, int) and 1 <= crop <= resize <= _MAX_SIDE):
            raise ModelError(
                f"its metadata has resize={resize!r} and crop={crop!r}, not pixels with crop ≤ resize ≤ {_MAX_SIDE}"
            )
        if not isinstance(interpolation, str) or interpolation not in _INTERPOLATIONS:
            raise ModelError(
                f"its metadata has interpolation={interpolation!r}, not one of {', '.join(_INTERPOLATIONS)}"
            )
        for key, values in (("mean", mean), ("std", std)):
            numbers = isinstance(values, list) and all(isinstance(v, int | float) for v in values)
            if not numbers or len(values) != 3 or (key == "std" and not all(v > 0 for v in values)):
                raise ModelError(f"its metadata has {key}={values!r}, not three {'positive ' * (key == 'std')}numbers")
        return cls(resize, interpolation, crop, tuple(mean), tuple(std))

    def to_card(self) -> dict[str, Any]:
        """The entries `from_card` reads."""
        return {
            "resize": self.resize,
            "interpolation": self.interpolation,
            "crop": self.crop,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def sniff_format(data: bytes) -> str | None:
    """The accepted format that `data` begins like, a key of `ACCEPTED_FORMATS`, or None."""
    head = data[:_SIGNATURE_BYTES]
    return next((name for name, signature in _SIGNATURES.items() if signature.match(head)), None)


def is_quick_to_open(data: bytes) -> bool:
    """Whether `open_image` is sure to be done within a few milliseconds: a JPEG of few segments before its pixels.

    Only one of them may be EXIF, because each of its entries is read.
    """
    if sniff_format(data) != "JPEG":
        return False
    position, exif = 2, 0
    for _ in range(_QUICK_SEGMENTS):
        head = data[position : position + 10]
        marker = head[:2]
        if marker == _START_OF_SCAN:
            return True
        exif += head[4:] == b"Exif\0\0"
        if len(head) < 10 or head[0] != 0xFF or head[1] < _FIRST_MARKER_WITH_LENGTH or exif > 1:
            return False
        position += 2 + int.from_bytes(head[2:4], "big")
    return False


def open_image(data: bytes, spec: Preprocessing, max_pixels: int) -> Image.Image:
    """Read a picture's header and nothing more; the pixels stay encoded until `decode`.

    data: the encoded file, recognised by content. max_pixels: limit on width × height, before and after resizing.
    Raises `UnsupportedFormat`, `UndecodableImage` or `TooManyPixels`.
    """
    format_name = sniff_format(data)
    if format_name is None:
        raise UnsupportedFormat(
            f"The file is not a picture in an accepted format; those are {', '.join(ACCEPTED_FORMATS)}."
        )
    try:
        image = Image.open(io.BytesIO(data), formats=[format_name])
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plug-ins let a dozen types of exception out on a corrupt header
        raise _undecodable(format_name) from error
    width, height = image.size
    if width * height > max_pixels:
        raise TooManyPixels(f"The picture has {width} × {height} pixels; the limit is {max_pixels} pixels.")
    resized = resized_size((width, height), spec.resize)
    if resized[0] * resized[1] > max_pixels:
        raise TooManyPixels(
            f"The picture has {width} × {height} pixels, which is {resized[0]} × {resized[1]} once its shorter side is "
            f"{spec.resize}; the limit is {max_pixels} pixels."
        )
    return image


def decode(image: Image.Image, apply_orientation: bool = True, reduce_for: Preprocessing | None = None) -> Image.Image:
    """Decode what `open_image` opened: the first frame, as upright 8-bit RGB. Raises `UndecodableImage`.

    reduce_for: a JPEG of at least four times the side that this needs is decoded at 1/2, 1/4 or 1/8 of its scale, to
    no less than twice that side, and comes back resized already. Its pixels then differ slightly; no others do.
    """
    format_name = image.format or "image"
    try:
        reduced = None if reduce_for is None else _decode_reduced(image, reduce_for)
        if reduced is not None:
            rgb = reduced
        elif image.mode.startswith("I;16"):
            rgb = _scale_16_bit(image).convert("RGB")
        elif image.mode in ("I", "F"):
            raise UndecodableImage(
                f"The {format_name} picture has 32-bit pixels, which have no agreed range; 8 and 16 bits are accepted."
            )
        else:
            rgb = image.convert("RGB")
    except (MemoryError, UndecodableImage):
        raise
    except Exception as error:  # as in open_image, and zlib's, struct's and the codecs' own
        raise _undecodable(format_name) from error
    if apply_orientation:
        _turn_upright(rgb)
    return rgb


def to_input(rgb: Image.Image, spec: Preprocessing, exact: bool = True) -> FloatArray:
    """RGB picture → the model's input, FP32 `[1, 3, crop, crop]`, normalised; not `exact`, see `resize_to_crop`."""
    cropped = center_crop(resize(rgb, spec), spec.crop) if exact else resize_to_crop(rgb, spec)
    return normalise(cropped, spec)


def resized_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Width and height once the shorter side is `shorter`; the longer is truncated, as torchvision's `Resize` does."""
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def resize(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """Scale the shorter side to `spec.resize`, antialiased as Pillow always does."""
    target = resized_size(image.size, spec.resize)
    return image if target == image.size else image.resize(target, _INTERPOLATIONS[spec.interpolation])


def resize_to_crop(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """What `resize` and then `center_crop` give, computing no other pixels: in half the time.

    Pillow keeps the box in single precision, so that one value in fifty is off by one level of 255, and none by more.
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
    return image.resize((spec.crop, spec.crop), _INTERPOLATIONS[spec.interpolation], box=box)


def crop_offset(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Left and top of the centre crop; an odd remainder is rounded half to even, as by torchvision."""
    return round((size[0] - side) / 2), round((size[1] - side) / 2)


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """The middle `side` × `side` pixels."""
    left, top = crop_offset(image.size, side)
    return image.crop((left, top, left + side, top + side))


def normalise(image: Image.Image, spec: Preprocessing) -> FloatArray:
    """8-bit RGB → FP32 `[1, 3, height, width]` with `(value / 255 - mean) / std` in each channel."""
    pixels = np.asarray(image)
    planes = np.empty((1, 3, *pixels.shape[:2]), np.float32)
    for channel, table in enumerate(_normalisation_table(spec)):
        np.take(table, pixels[..., channel], out=planes[0, channel], mode="clip")
    return planes


@lru_cache(maxsize=8)
def _normalisation_table(spec: Preprocessing) -> FloatArray:
    """FP32 `[3, 256]`: what each 8-bit value becomes. Computed in torchvision's order of operations, so bit for bit."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = (np.asarray(numbers, np.float32)[:, None] for numbers in (spec.mean, spec.std))
    table: FloatArray = (values - mean) / std
    return table


def _decode_reduced(image: Image.Image, spec: Preprocessing) -> Image.Image | None:
    """Have a JPEG's blocks decoded to fewer pixels each (libjpeg's scaled DCT), then resize; None if it is too small.

    The size is what `resize` would give at full scale. The box is too, to the fraction of a pixel: the last pixel of a
    row may stand for fewer full ones than the others.
    """
    target = resized_size(image.size, spec.resize)
    enough = (target[0] * _REDUCED_TO, target[1] * _REDUCED_TO)
    if (
        not isinstance(image, JpegImagePlugin.JpegImageFile)
        or min(image.width // enough[0], image.height // enough[1]) < 2
    ):
        return None
    drafted = image.draft(None, enough)
    if drafted is None:  # not one plain scan, as in some uncommon JPEGs
        return None
    return image.convert("RGB").resize(target, _INTERPOLATIONS[spec.interpolation], box=drafted[1])


def _scale_16_bit(image: Image.Image) -> Image.Image:
    """16-bit grey → 8-bit grey, 65535 to 255 and rounded to nearest."""
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _turn_upright(rgb: Image.Image) -> None:
    """Apply EXIF orientation in place. A picture whose EXIF cannot be read is taken as upright."""
    try:
        ImageOps.exif_transpose(rgb, in_place=True)
    except MemoryError:
        raise
    except Exception:  # noqa: S110  broken metadata around a sound picture: torchvision's loader would not have looked
        pass


def _undecodable(format_name: str) -> UndecodableImage:
    return UndecodableImage(f"The {format_name} picture cannot be decoded: it is truncated or corrupt.")
