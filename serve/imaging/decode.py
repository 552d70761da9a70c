"""Opens and decodes images: format by content, limits by the header, first frame as upright RGB.

What it takes in time and memory is bounded from outside, by the process that it runs in (`pool.py`). The pixels are
those of torchvision's usual loader, `Image.open(file).convert("RGB")`, with two exceptions: EXIF orientation is applied
(unless turned off), and grey of more than 8 bits is scaled to 8 bits where Pillow would clip it.
"""

import io
from functools import cache
from typing import Final, NamedTuple

from PIL import ExifTags, Image

from serve.errors import RequestError
from serve.imaging.formats import ACCEPTED_FORMATS, HEIC, Data, heic_ends_early
from serve.imaging.limits import ImageLimits, check_early, check_limits, damaged, require_format
from serve.imaging.plugins import OPENERS, Jpeg
from serve.imaging.preprocess import Preprocessing, resized_size, view_size
from serve.imaging.resize import lowest_row, resampling_filter
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
# Those that exchange width and height.
_TURNING: Final = tuple(_TRANSPOSE_BY_ORIENTATION[each] for each in (5, 6, 7, 8))
# A view is first reduced by averaging, to at least so many times its size, and then resampled.
_VIEW_GAP: Final = 2.0
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


class Upright(NamedTuple):
    """A decoded image, turned upright.

    Attributes:
        rgb: 8-bit RGB; rows below the model's crop may be missing.
        size: width and height of the image in pixels of `rgb`; after a decode at reduced scale they may end within one.
        view: the same at another size; None if it was not asked for.
        turned: whether width and height have changed places.
    """

    rgb: Image.Image
    size: tuple[float, float]
    view: Image.Image | None
    turned: bool


def decode(image: Image.Image, apply_orientation: bool = True) -> Image.Image:
    """Returns the first frame of an image from `open_image` as 8-bit RGB; arguments and errors as `decode_upright`."""
    return decode_upright(image, apply_orientation).rgb


def decode_upright(
    image: Image.Image, apply_orientation: bool = True, reduce_for: Preprocessing | None = None, view: int = 0
) -> Upright:
    """Decodes the first frame of an image from `open_image`.

    Args:
        apply_orientation: whether to turn the image upright by its EXIF orientation.
        reduce_for: the preprocessing to reduce for, or None. A JPEG whose sides are at least four times as long as
            after resizing is decoded at 1/2, 1/4 or 1/8 scale, to at least twice its resized size; its pixels differ
            slightly from those of a full decode. One that is turned is returned resized; of others, rows that
            `resize_to_crop` does not need may be missing.
        view: the longer side, in pixels, of the whole image to return as well; 0 for none.

    Raises:
        UndecodableImage: the file is truncated or corrupt.
    """
    size = image.size
    try:
        box = (reduce_for and _reduce(image, reduce_for)) or (0, 0, *size)
        turn = _transposition(image) if apply_orientation and isinstance(image, Jpeg) else None
        rows = 0
        if reduce_for and isinstance(image, Jpeg) and turn is None:
            rows = image.rows_to(lowest_row(box[2:], reduce_for))
            if rows and not view:
                image.decode_only(rows)
        image.load()
        grey = image.mode.startswith("I;16")
        rgb = image if image.mode == "RGB" else (_scale_grey(image) if grey else image).convert("RGB")
        seen = rgb.resize(view_size(size, view), Image.Resampling.BILINEAR, box, _VIEW_GAP) if view else None
        # A PNG's EXIF may follow its pixels. libheif has turned a HEIC as its container says; EXIF often says the same.
        if apply_orientation and not isinstance(image, Jpeg) and image.format != "HEIF":
            turn = _transposition(image)
        if turn is None:
            if rows and view:  # or the crop would be rounded otherwise than without a view
                rgb = rgb.crop((0, 0, rgb.width, rows))
            return Upright(rgb, box[2:], seen, turned=False)
        if reduce_for and box[2:] != size:  # resized first, because turning takes time for each pixel
            rgb = rgb.resize(resized_size(size, reduce_for.resize), resampling_filter(reduce_for), box)
        rgb = rgb.transpose(turn)
        return Upright(rgb, rgb.size, seen and seen.transpose(turn), turn in _TURNING)
    except (MemoryError, RequestError):
        raise
    except Exception as error:  # as in read_header, and those of zlib, struct and the codecs
        raise damaged(_NAMES[image.format or ""]) from error


def _reduce(image: Image.Image, spec: Preprocessing) -> tuple[float, float, float, float] | None:
    """Has a JPEG decoded at reduced scale (libjpeg's scaled DCT), unless it is too small or not a lossy JPEG.

    Returns:
        The box of the reduced image that is the whole one, because the last pixel of a reduced row may stand for fewer
        full pixels; None if it is not reduced.
    """
    target = resized_size(image.size, spec.resize)
    enough = (target[0] * _MIN_REDUCED_RATIO, target[1] * _MIN_REDUCED_RATIO)
    if (
        not isinstance(image, Jpeg)
        or image.info["lossless"]
        or min(image.width // enough[0], image.height // enough[1]) < 2
    ):
        return None
    drafted = image.draft(None, enough)
    return drafted[1] if drafted else None  # Pillow reduces JPEGs of a single tile only


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
