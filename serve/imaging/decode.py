"""Opens and decodes images: format by content, limits by the header, first frame as upright RGB.

What it takes in time and memory is bounded from outside, by the process that it runs in (`pool.py`). The pixels are
those of torchvision's usual loader, `Image.open(file).convert("RGB")`, with two exceptions: EXIF orientation is applied
(unless turned off), and grey of more than 8 bits is scaled to 8 bits where Pillow would clip it.
"""

import io
from functools import cache
from typing import Final

from PIL import ExifTags, Image, JpegImagePlugin

from serve.errors import RequestError
from serve.imaging.formats import ACCEPTED_FORMATS, HEIC, Data, heic_ends_early
from serve.imaging.limits import ImageLimits, check_early, check_limits, damaged, require_format
from serve.imaging.plugins import OPENERS
from serve.imaging.preprocess import Preprocessing, resized_size
from serve.imaging.resize import resampling_filter
from serve.imaging.tiff import TiffFile

# Pillow's own limit on pixels is global; `open_image` applies the one of the settings.
Image.MAX_IMAGE_PIXELS = None

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
# A text chunk in which ImageMagick writes a PNG's EXIF: three lines, then hexadecimal digits.
_EXIF_IN_TEXT: Final = "Raw profile type exif"
# From Pillow's names of formats to ours.
_NAMES: Final = {name.upper(): name for name in ACCEPTED_FORMATS} | {"HEIF": HEIC}


def open_image(data: Data, spec: Preprocessing, limits: ImageLimits) -> Image.Image:
    """Reads an image's header; the pixels stay encoded until `decode`.

    Args:
        data: the encoded file; its format is recognised by content.
        spec: the model's preprocessing, because the limit on pixels also holds after resizing.

    Raises:
        UnsupportedFormat: the first bytes are not those of an accepted format.
        UndecodableImage: the header is truncated or corrupt.
        UnsupportedVariety: it is of a variety that is not decoded.
        TooManyPixels, TooManyFrames: it exceeds a limit.
    """
    format_name = require_format(data)
    check_early(data, format_name, spec, limits)
    image, frames = read_header(data, format_name)
    check_limits(image.size, frames, spec, limits)
    return image


def read_header(data: Data, format_name: str) -> tuple[Image.Image, int]:
    """Returns the image, not decoded yet, and its number of frames.

    Args:
        data: the encoded file.
        format_name: the format recognised by content, one of `ACCEPTED_FORMATS`.

    Raises:
        UndecodableImage: the header is truncated or corrupt.
        UnsupportedVariety: it is of a variety that is not decoded.
    """
    if format_name == HEIC and heic_ends_early(data):
        raise damaged(format_name)
    try:
        image = OPENERS[format_name](io.BytesIO(data))
        return image, 1 if format_name in ("JPEG", "TIFF") else getattr(image, "n_frames", 1)
    except (MemoryError, RequestError):
        raise
    except Exception as error:  # Pillow's plug-ins raise a dozen types of exception on a corrupt header
        raise damaged(format_name) from error


def decode(image: Image.Image, apply_orientation: bool = True, reduce_for: Preprocessing | None = None) -> Image.Image:
    """Decodes the first frame of an image from `open_image` as 8-bit RGB.

    Args:
        apply_orientation: whether to turn the image upright by its EXIF orientation.
        reduce_for: the preprocessing to reduce for, or None. A JPEG whose sides are at least four times as long as
            after resizing is decoded at 1/2, 1/4 or 1/8 scale, to at least twice its resized size, and is returned
            resized; its pixels differ slightly from those of a full decode.

    Raises:
        UndecodableImage: the file is truncated or corrupt.
    """
    try:
        reduced = None if reduce_for is None else _decode_reduced(image, reduce_for)
        if reduced is not None:
            rgb = reduced
        elif image.mode.startswith("I;16"):
            rgb = _scale_grey(image).convert("RGB")
        else:
            rgb = image.convert("RGB")
        # libheif has turned a HEIC as its container says; EXIF often says the same once more.
        turn = _transposition(image) if apply_orientation and image.format != "HEIF" else None
        return rgb if turn is None else rgb.transpose(turn)
    except (MemoryError, RequestError):
        raise
    except Exception as error:  # as in read_header, and those of zlib, struct and the codecs
        raise damaged(_NAMES[image.format or ""]) from error


def _decode_reduced(image: Image.Image, spec: Preprocessing) -> Image.Image | None:
    """Decodes a JPEG at reduced scale (libjpeg's scaled DCT) and resizes it; None if too small or not a lossy JPEG.

    Size and box are those of `resize` at full scale; the last pixel of a reduced row may stand for fewer full pixels.
    """
    target = resized_size(image.size, spec.resize)
    enough = (target[0] * _MIN_REDUCED_RATIO, target[1] * _MIN_REDUCED_RATIO)
    if (
        not isinstance(image, JpegImagePlugin.JpegImageFile)
        or image.info["lossless"]
        or min(image.width // enough[0], image.height // enough[1]) < 2
    ):
        return None
    drafted = image.draft(None, enough)
    if drafted is None:  # Pillow reduces JPEGs of a single tile only
        return None
    return image.convert("RGB").resize(target, resampling_filter(spec), box=drafted[1])


def _scale_grey(image: Image.Image) -> Image.Image:
    """Scales grey of more than 8 bits to 8, white to 255, rounded to nearest."""
    levels = scale_table(image.info.get("bits", 16), image.info.get("white_is_zero", False))
    return image.convert("I").point(levels, "L")


@cache
def scale_table(bits: int = 16, white_is_zero: bool = False) -> list[int]:
    """Returns the 8-bit value of each 16-bit number, of which the lowest `bits` are used."""
    white = 2**bits - 1
    levels = [min((value * 255 + white // 2) // white, 255) for value in range(2**16)]
    return [255 - level for level in levels] if white_is_zero else levels


def _transposition(image: Image.Image) -> Image.Transpose | None:
    """Returns what makes an image upright by its EXIF orientation; None without readable EXIF."""
    # Not by Image.getexif, which takes the orientation of XMP too.
    try:
        if isinstance(image, TiffFile):
            orientation = image.tag_v2.get(ExifTags.Base.Orientation)
        else:
            exif, in_text = Image.Exif(), image.info.get(_EXIF_IN_TEXT, "").split("\n")[3:]
            exif.load(image.info.get("exif") or bytes.fromhex("".join(in_text)))
            orientation = exif.get(ExifTags.Base.Orientation)
        return _TRANSPOSE_BY_ORIENTATION.get(orientation or 1)
    except MemoryError:
        raise
    except Exception:  # broken EXIF in a sound image: torchvision's loader would ignore it
        return None
