"""Opens and decodes images: format by content, limits by the header, first frame as upright RGB.

What it takes in time and memory is bounded from outside, by the process that it runs in (`pool.py`). The pixels are
those of torchvision's usual loader, `Image.open(file).convert("RGB")`, with two exceptions: EXIF orientation is applied
(unless turned off), and 16-bit grey is scaled to 8 bits where Pillow would clip it.
"""

import io
from functools import cache
from typing import Final

from PIL import ExifTags, Image

# All plug-ins that are used, imported here so that Pillow does not load its forty others.
from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin  # noqa: F401  isort: skip
from PIL import PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401  isort: skip

from serve.errors import RequestError
from serve.imaging.formats import ACCEPTED_FORMATS, HEIC, heic_ends_early
from serve.imaging.limits import ImageLimits, check_early, check_limits, damaged, require_format, too_deep
from serve.imaging.preprocess import Preprocessing, resized_size
from serve.imaging.resize import resampling_filter

# Pillow's own limit on pixels is global; `open_image` applies the one of the settings.
Image.MAX_IMAGE_PIXELS = None
# Decode on the calling thread; by default the AV1 decoder starts a thread per CPU.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
if HEIC in ACCEPTED_FORMATS:
    import pi_heif

    # libheif starts no threads of its own; libde265, below it, starts one for each image or tile all the same.
    pi_heif.options.DECODE_THREADS = 0
    pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False
    Image.register_open(HEIC, pi_heif.HeifImageFile)

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
# From Pillow's names of formats to ours.
_NAMES: Final = {name.upper(): name for name in ACCEPTED_FORMATS} | {"HEIF": HEIC}
# Modes of 32 bits per pixel.
DEEP_MODES: Final = ("I", "F")


def open_image(data: bytes, spec: Preprocessing, limits: ImageLimits) -> Image.Image:
    """Reads an image's header; the pixels stay encoded until `decode`.

    Args:
        data: the encoded file; its format is recognised by content.
        spec: the model's preprocessing, because the limit on pixels also holds after resizing.

    Raises:
        UnsupportedFormat: the first bytes are not those of an accepted format.
        UndecodableImage: the header is truncated or corrupt.
        TooManyPixels, TooManyFrames: it exceeds a limit.
    """
    format_name = require_format(data)
    check_early(data, format_name, spec, limits)
    image, frames = read_header(data, format_name)
    check_limits(image.size, frames, spec, limits)
    return image


def read_header(data: bytes, format_name: str) -> tuple[Image.Image, int]:
    """Returns the image, not decoded yet, and its number of frames.

    Args:
        data: the encoded file.
        format_name: the format recognised by content, one of `ACCEPTED_FORMATS`.

    Raises:
        UndecodableImage: the header is truncated or corrupt.
    """
    if format_name == HEIC and heic_ends_early(data):
        raise damaged(format_name)
    try:
        image = Image.open(io.BytesIO(data), formats=[format_name])
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
        UndecodableImage: the file is truncated or corrupt, or has 32-bit pixels.
    """
    format_name = _NAMES.get(image.format or "", "JPEG")  # Pillow calls a JPEG of several images MPO
    try:
        reduced = None if reduce_for is None else _decode_reduced(image, reduce_for)
        if reduced is not None:
            rgb = reduced
        elif image.mode.startswith("I;16"):
            rgb = _scale_16_bit(image).convert("RGB")
        elif image.mode in DEEP_MODES:
            raise too_deep(format_name)
        else:
            rgb = image.convert("RGB")
    except (MemoryError, RequestError):
        raise
    except Exception as error:  # as in read_header, and those of zlib, struct and the codecs
        raise damaged(format_name) from error
    # libheif has turned a HEIC as its container says; EXIF often says the same once more.
    return _upright(rgb) if apply_orientation and format_name != HEIC else rgb


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
    return image.convert("RGB").resize(target, resampling_filter(spec), box=drafted[1])


def _scale_16_bit(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey to 8 bits, 65535 to 255, rounded to nearest."""
    scaled = image.convert("I").point(scale_table(), "L")
    scaled.info.update(image.info)  # it holds the EXIF orientation
    return scaled


@cache
def scale_table() -> list[int]:
    """Returns the 8-bit value of each 16-bit one, rounded to nearest."""
    return [min((value + 128) // 257, 255) for value in range(2**16)]


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
