"""Opens and decodes untrusted images within limits: format by content, header checks, first frame as upright RGB.

Before a decoder runs, format, size and frames are checked, and for JPEG, TIFF and AVIF what else their decoders would
spend time or memory on. Pillow's plug-ins read from a file that stops them when their CPU time is used up. Without
`reduce_for`, the pixels are those of torchvision's usual loader, `Image.open(file).convert("RGB")`, except that EXIF
orientation is applied (unless turned off), and 16-bit grey is scaled to 8 bits where Pillow would clip it.
"""

import ctypes
import io
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
from PIL import ExifTags, Image

# All plug-ins that are used, imported here so that Pillow does not load its forty others.
from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin  # noqa: F401  isort: skip
from PIL import PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401  isort: skip

from serve.errors import RequestError, TooComplex, TooManyFrames, TooManyPixels, UndecodableImage, UnsupportedFormat
from serve.imaging.avif import require_modest_avif
from serve.imaging.claims import is_one_scan, require_modest_exif, require_modest_layout, require_modest_scans
from serve.imaging.formats import ACCEPTED_FORMATS, sniff_format
from serve.imaging.preprocess import INTERPOLATIONS, Preprocessing, resized_size

# Pillow's own limit on pixels is global; `open_image` applies the one of the settings.
Image.MAX_IMAGE_PIXELS = None
# Decode on the calling thread; by default the AV1 decoder starts a thread per CPU.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# CPU seconds for reading a header; ordinary ones take a thousandth of it.
_HEADER_SECONDS: Final = 0.5

# A JPEG is reduced to at least this multiple of the side it is resized to; less would change predictions by aliasing.
_MIN_REDUCED_RATIO: Final = 2

# From EXIF orientation (CIPA DC-008, 4.6.4), except 1 for upright, to the operation that makes the image upright.
_TRANSPOSE_BY_ORIENTATION: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A lossless WebP has up to 65,536 sets of code tables. Their memory, as pixels: per byte of the file, and at most.
_TABLE_PIXELS_PER_BYTE: Final = 80
_MAX_TABLE_PIXELS: Final = 24_000_000


@dataclass(frozen=True)
class ImageLimits:
    """Limits per image: pixels, before and after resizing; frames; CPU seconds to decode it."""

    max_pixels: int
    max_frames: int = 1000
    decode_seconds: float = math.inf


class _TimedFile(io.BytesIO):
    """A file in memory that raises `TooComplex` when its reader has used up its CPU time.

    This stops Pillow's decoders that read at most 64 KB at a time; those that read the whole file (WebP, AVIF, TIFF's
    compressions) are limited by the checks before.
    """

    def __init__(self, data: bytes, limits: ImageLimits) -> None:
        super().__init__(data)
        self._decode_seconds = limits.decode_seconds
        self.allow(_HEADER_SECONDS, "open")

    def allow_decoding(self) -> None:
        self.allow(self._decode_seconds, "decode")

    def allow(self, seconds: float, what: str) -> None:
        """Sets the CPU seconds that the calling thread may spend from now on."""
        self._until = time.thread_time() + seconds
        self._refusal = f"The image takes too long to {what}; the limit is {seconds:g} s."

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() > self._until:
            raise TooComplex(self._refusal)
        return super().read(size)


def open_image(data: bytes, spec: Preprocessing, limits: ImageLimits) -> Image.Image:
    """Reads an image's header; the pixels stay encoded until `decode`.

    Args:
        data: the encoded file; its format is recognised by content.
        spec: the model's preprocessing, because the limit on pixels also holds after resizing.

    Raises:
        UnsupportedFormat: the first bytes are not those of an accepted format.
        UndecodableImage: the header is truncated or corrupt.
        TooManyPixels, TooManyFrames: it exceeds a limit.
        TooComplex: decoding would take more work than its size warrants.
    """
    format_name = sniff_format(data)
    if format_name is None:
        raise UnsupportedFormat(
            f"The file is not an image in an accepted format; those are {', '.join(ACCEPTED_FORMATS)}."
        )
    _check_structure(data, format_name, limits)
    image, frames = _read_header(data, format_name, limits)
    if frames > limits.max_frames:
        raise TooManyFrames(f"The image has {frames} frames; the limit is {limits.max_frames} frames.")
    (width, height), max_pixels = image.size, limits.max_pixels
    if width * height > max_pixels:
        raise TooManyPixels(f"The image has {width} × {height} pixels; the limit is {max_pixels} pixels.")
    if format_name == "JPEG":
        require_modest_scans(data, width * height)
    resized = resized_size((width, height), spec.resize)
    if resized[0] * resized[1] > max_pixels:
        raise TooManyPixels(
            f"The image has {width} × {height} pixels, which is {resized[0]} × {resized[1]} once its shorter side is "
            f"{spec.resize}; the limit is {max_pixels} pixels."
        )
    return image


def _check_structure(data: bytes, format_name: str, limits: ImageLimits) -> None:
    """Checks what Pillow would spend time on while it reads the header; raises as `open_image` does."""
    match format_name:
        case "JPEG":
            require_modest_exif(data)
        case "TIFF":
            require_modest_layout(data, limits.max_pixels)
        case "AVIF":
            require_modest_avif(data, limits.max_pixels, limits.max_frames)


def _read_header(data: bytes, format_name: str, limits: ImageLimits) -> tuple[Image.Image, int]:
    """Returns the image, not decoded yet, and its number of frames; raises as `open_image` does."""
    try:
        image = Image.open(_TimedFile(data, limits), formats=[format_name])
        return image, 1 if format_name in ("JPEG", "TIFF") else getattr(image, "n_frames", 1)
    except (MemoryError, RequestError):
        raise
    except Exception as error:  # Pillow's plug-ins raise a dozen types of exception on a corrupt header
        raise _undecodable(format_name) from error


def estimate_decoding_pixels(image: Image.Image, reduce_for: Preprocessing | None = None) -> int:
    """Estimates the pixels that `decode` holds: fewer for a reduced JPEG, more for a lossless WebP."""
    pixels = image.width * image.height
    if image.format == "WEBP":
        data = cast(io.BytesIO, image.fp).getvalue()  # type: ignore[attr-defined]
        tables = min(_MAX_TABLE_PIXELS, _TABLE_PIXELS_PER_BYTE * len(data))
        return pixels + (tables if b"VP8L" in data or b"ALPH" in data else 0)
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.info.get("progressive") or not reduce_for:
        return pixels
    reduced = min(image.size) >= 4 * reduce_for.resize
    data = cast(io.BytesIO, image.fp).getvalue() if reduced else b""
    return pixels // 4 if reduced and is_one_scan(data, image.layers) else pixels


def decode(image: Image.Image, apply_orientation: bool = True, reduce_for: Preprocessing | None = None) -> Image.Image:
    """Decodes the first frame of an image from `open_image` as 8-bit RGB.

    Args:
        apply_orientation: whether to turn the image upright by its EXIF orientation.
        reduce_for: the preprocessing to reduce for, or None. A JPEG whose sides are at least four times as long as
            after resizing is decoded at 1/2, 1/4 or 1/8 scale, to at least twice its resized size, and is returned
            resized; its pixels differ slightly from those of a full decode.

    Raises:
        UndecodableImage: the file is truncated or corrupt, or has 32-bit pixels.
        TooComplex: the CPU time is used up.
    """
    format_name = image.format or "image"
    try:
        if isinstance(image.fp, _TimedFile):  # type: ignore[attr-defined]
            image.fp.allow_decoding()  # type: ignore[attr-defined]
        reduced = None if reduce_for is None else _decode_reduced(image, reduce_for)
        if reduced is not None:
            rgb = reduced
        elif image.mode.startswith("I;16"):
            rgb = _scale_16_bit(image).convert("RGB")
        elif image.mode in ("I", "F"):
            raise UndecodableImage(
                f"The {format_name} image has 32-bit pixels, which have no agreed range; 8 and 16 bits are accepted."
            )
        else:
            rgb = image.convert("RGB")
    except (MemoryError, RequestError):
        raise
    except Exception as error:  # as in _read_header, and those of zlib, struct and the codecs
        raise _undecodable(format_name) from error
    return _upright(rgb) if apply_orientation else rgb


def _decode_reduced(image: Image.Image, spec: Preprocessing) -> Image.Image | None:
    """Decodes a JPEG at reduced scale (libjpeg's scaled DCT) and resizes it; None if it is too small or not a JPEG.

    Size and box are those of `resize` at full scale; the last pixel of a reduced row may stand for fewer full pixels.
    """
    target = resized_size(image.size, spec.resize)
    enough = (target[0] * _MIN_REDUCED_RATIO, target[1] * _MIN_REDUCED_RATIO)
    if (
        not isinstance(image, JpegImagePlugin.JpegImageFile)
        or min(image.width // enough[0], image.height // enough[1]) < 2
    ):
        return None
    drafted = image.draft(None, enough)
    if drafted is None:  # Pillow reduces JPEGs of a single tile only
        return None
    return image.convert("RGB").resize(target, INTERPOLATIONS[spec.interpolation], box=drafted[1])


def _scale_16_bit(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey to 8 bits, 65535 to 255, rounded to nearest."""
    values = np.asarray(image).astype(np.uint32)
    scaled = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    scaled.info.update(image.info)  # it holds the EXIF orientation
    return scaled


def _upright(rgb: Image.Image) -> Image.Image:
    """Turns an image upright by its EXIF orientation; without readable EXIF it is taken as upright."""
    # Not by ImageOps.exif_transpose, which parses the whole EXIF to rewrite it.
    try:
        turn = _TRANSPOSE_BY_ORIENTATION.get(rgb.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # broken EXIF in a sound image: torchvision's loader would ignore it
        return rgb
    return rgb if turn is None else rgb.transpose(turn)


def _undecodable(format_name: str) -> UndecodableImage:
    return UndecodableImage(f"The {format_name} image cannot be decoded: it is truncated or corrupt.")


def _silence_libtiff() -> None:
    """Stops libtiff, in the library that Pillow has loaded, from writing about corrupt files to standard error."""
    loaded = Path("/proc/self/maps")
    names = set(re.findall(r"/\S*libtiff\S*", loaded.read_text())) if loaded.exists() else set()
    for name in names:
        library = ctypes.CDLL(name)
        for handler in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            getattr(library, handler)(None)


_silence_libtiff()
