"""Encoded picture → its format by content → header check → upright RGB: the first frame, decoded within limits.

What comes from the internet is looked at before a decoder sees it: format, size, frames, and for JPEG, TIFF and AVIF
what else their decoders would spend time or memory on (`claims.py`, `avif.py`). Pillow's plug-ins read through a file
that ends their work when its time is up. The pixels are those of torchvision's usual loader,
`Image.open(file).convert("RGB")`, with two stated exceptions: EXIF orientation is applied (unless turned off), and
16-bit grey is scaled to 8 bits where Pillow would clip it to white.

Errors that leave here: `UnsupportedFormat`, `UndecodableImage`, `TooManyPixels`, `TooManyFrames`, `TooComplex`.
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

# All the plug-ins that are ever used, imported here so that Pillow never goes looking for its forty others.
from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin  # noqa: F401  isort: skip
from PIL import PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401  isort: skip

from serve.errors import RequestError, TooComplex, TooManyFrames, TooManyPixels, UndecodableImage, UnsupportedFormat
from serve.imaging.avif import require_modest_avif
from serve.imaging.claims import is_one_scan, require_modest_exif, require_modest_layout, require_modest_scans
from serve.imaging.formats import ACCEPTED_FORMATS, sniff_format
from serve.imaging.preprocess import INTERPOLATIONS, Preprocessing, resized_size

# Pillow's own bomb guard knows one limit for the whole process; `open_image` applies ours, which is a setting.
Image.MAX_IMAGE_PIXELS = None
# Decoding belongs to the thread that asks for it; by itself the AV1 decoder would start one for each CPU.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# CPU seconds that reading a header may take; ordinary ones take a thousandth.
_HEADER_SECONDS: Final = 0.5

# A reduced JPEG keeps this many times the side it is then resized to, as Pillow's own `thumbnail` does. With less, what
# aliases in so small a picture shows in the answers: docs/serving.md has the figures.
_REDUCED_TO: Final = 2

# EXIF's orientations (CIPA DC-008, 4.6.4) but for 1, upright → what turns a picture back.
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A WebP without loss has up to 65,536 sets of code tables: as how many pixels they count, for each byte and at most.
_TABLE_PIXELS_A_BYTE: Final = 80
_MOST_TABLE_PIXELS: Final = 24_000_000


@dataclass(frozen=True)
class ImageLimits:
    """What one picture may claim: width × height, before and after resizing; frames; CPU seconds to decode it."""

    max_pixels: int
    max_frames: int = 1000
    decode_seconds: float = math.inf


class _TimedFile(io.BytesIO):
    """A file in memory whose reader is sent away once it has used up its CPU time.

    Pillow's decoders come back for more every 64 KB at least, so this ends most of what runs away. What takes the whole
    file at once (WebP, AVIF, TIFF's compressions) is bounded by what was claimed for it and looked at before.
    """

    def __init__(self, data: bytes, limits: ImageLimits) -> None:
        super().__init__(data)
        self._decode_seconds = limits.decode_seconds
        self.allow(_HEADER_SECONDS, "reading its header")

    def allow_decoding(self) -> None:
        self.allow(self._decode_seconds, "decoding it")

    def allow(self, seconds: float, what: str) -> None:
        """From now on the calling thread may spend so many CPU seconds."""
        self._until = time.thread_time() + seconds
        self._refusal = f"The picture takes too long: {what} is given {seconds:g} s."

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() > self._until:
            raise TooComplex(self._refusal)
        return super().read(size)


def open_image(data: bytes, spec: Preprocessing, limits: ImageLimits) -> Image.Image:
    """Read a picture's header and nothing more; the pixels stay encoded until `decode`.

    data: the encoded file, recognised by content. Raises any of this module's errors.
    """
    format_name = sniff_format(data)
    if format_name is None:
        raise UnsupportedFormat(
            f"The file is not a picture in an accepted format; those are {', '.join(ACCEPTED_FORMATS)}."
        )
    match format_name:
        case "JPEG":
            require_modest_exif(data)
        case "TIFF":
            require_modest_layout(data, limits.max_pixels)
        case "AVIF":
            require_modest_avif(data, limits.max_pixels, limits.max_frames)
    try:
        image = Image.open(_TimedFile(data, limits), formats=[format_name])
        frames = 1 if format_name in ("JPEG", "TIFF") else getattr(image, "n_frames", 1)
    except (MemoryError, RequestError):
        raise
    except Exception as error:  # Pillow's plug-ins let a dozen types of exception out on a corrupt header
        raise _undecodable(format_name) from error
    if frames > limits.max_frames:
        raise TooManyFrames(f"The picture has {frames} frames; the limit is {limits.max_frames} frames.")
    width, height = image.size
    max_pixels = limits.max_pixels
    if width * height > max_pixels:
        raise TooManyPixels(f"The picture has {width} × {height} pixels; the limit is {max_pixels} pixels.")
    if format_name == "JPEG":
        require_modest_scans(data, width * height)
    resized = resized_size((width, height), spec.resize)
    if resized[0] * resized[1] > max_pixels:
        raise TooManyPixels(
            f"The picture has {width} × {height} pixels, which is {resized[0]} × {resized[1]} once its shorter side is "
            f"{spec.resize}; the limit is {max_pixels} pixels."
        )
    return image


def decoding_pixels(image: Image.Image, reduce_for: Preprocessing | None = None) -> int:
    """About how many pixels `decode` will hold: all of them, but for a JPEG that is reduced while it is read, and more
    for a WebP without loss.
    """
    pixels = image.width * image.height
    if image.format == "WEBP":
        data = cast(io.BytesIO, image.fp).getvalue()  # type: ignore[attr-defined]
        tables = min(_MOST_TABLE_PIXELS, _TABLE_PIXELS_A_BYTE * len(data))
        return pixels + (tables if b"VP8L" in data or b"ALPH" in data else 0)
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.info.get("progressive") or not reduce_for:
        return pixels
    reduced = min(image.size) >= 4 * reduce_for.resize
    data = cast(io.BytesIO, image.fp).getvalue() if reduced else b""
    return pixels // 4 if reduced and is_one_scan(data, image.layers) else pixels


def decode(image: Image.Image, apply_orientation: bool = True, reduce_for: Preprocessing | None = None) -> Image.Image:
    """Decode what `open_image` opened: the first frame, as upright 8-bit RGB. Raises `UndecodableImage` or
    `TooComplex`.

    reduce_for: a JPEG of at least four times the side that this needs is decoded at 1/2, 1/4 or 1/8 of its scale, to
    no less than twice that side, and comes back resized already. Its pixels then differ slightly; no others do.
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
                f"The {format_name} picture has 32-bit pixels, which have no agreed range; 8 and 16 bits are accepted."
            )
        else:
            rgb = image.convert("RGB")
    except (MemoryError, RequestError):
        raise
    except Exception as error:  # as in open_image, and zlib's, struct's and the codecs' own
        raise _undecodable(format_name) from error
    return _upright(rgb) if apply_orientation else rgb


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
    return image.convert("RGB").resize(target, INTERPOLATIONS[spec.interpolation], box=drafted[1])


def _scale_16_bit(image: Image.Image) -> Image.Image:
    """16-bit grey → 8-bit grey, 65535 to 255 and rounded to nearest."""
    values = np.asarray(image).astype(np.uint32)
    scaled = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    scaled.info.update(image.info)  # EXIF is there, and with it which way is up
    return scaled


def _upright(rgb: Image.Image) -> Image.Image:
    """The picture as its EXIF says it is to be held. One whose EXIF cannot be read is taken as upright."""
    # Not by ImageOps.exif_transpose, which makes objects of all that is in the EXIF, to write it anew.
    try:
        turn = _TURNS.get(rgb.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # broken metadata around a sound picture: torchvision's loader would not have looked
        return rgb
    return rgb if turn is None else rgb.transpose(turn)


def _undecodable(format_name: str) -> UndecodableImage:
    return UndecodableImage(f"The {format_name} picture cannot be decoded: it is truncated or corrupt.")


def _silence_libtiff() -> None:
    """libtiff writes of corrupt files to standard error, past every log. Its library is the one Pillow has loaded."""
    loaded = Path("/proc/self/maps")
    names = set(re.findall(r"/\S*libtiff\S*", loaded.read_text())) if loaded.exists() else set()
    for name in names:
        library = ctypes.CDLL(name)
        for handler in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            getattr(library, handler)(None)


_silence_libtiff()
