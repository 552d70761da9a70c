"""The limits per image, checked by the figures in its header, and the errors of images that cannot be decoded."""

import math
from dataclasses import dataclass

from serve.errors import TooManyFrames, TooManyPixels, UndecodableImage, UnsupportedFormat
from serve.imaging.formats import ACCEPTED_FORMATS, HEIC, Data, sniff_format, webp_size
from serve.imaging.non_images import describe_non_image
from serve.imaging.preprocess import Preprocessing, resized_size


@dataclass(frozen=True)
class ImageLimits:
    """Limits per image: pixels, before and after resizing; frames; CPU seconds to decode it."""

    max_pixels: int
    max_frames: int = 1000
    decode_seconds: float = math.inf


def require_format(data: Data) -> str:
    """Returns the accepted format whose signature `data` begins with; raises `UnsupportedFormat` if there is none."""
    name = sniff_format(data)
    if name and name in ACCEPTED_FORMATS:
        return name
    accepted = ", ".join(ACCEPTED_FORMATS)
    if name == HEIC:
        raise UnsupportedFormat(
            "HEIC needs the extra 'heic', which this server lacks; its operator can add it with pip install "
            "'densenet-server[heic]' or make serve HEIC=1, or to the container image with --build-arg HEIC=1. "
            f"The accepted formats are {accepted}."
        )
    told = f"The file is not an image in an accepted format; those are {accepted}."
    if found := describe_non_image(data):
        told += f" It is {found.what}; {found.advice}."
    raise UnsupportedFormat(told)


def check_early(data: Data, format_name: str, spec: Preprocessing, limits: ImageLimits) -> None:
    """Checks the size where it can be read without a decoder, as in WebP; raises `TooManyPixels`."""
    size = webp_size(data) if format_name == "WebP" else None
    if size and min(size):
        check_limits(size, 1, spec, limits)


def check_limits(size: tuple[int, int], frames: int, spec: Preprocessing, limits: ImageLimits) -> None:
    """Checks the figures of an image's header.

    Args:
        size: width and height in pixels.
        frames: of an animation, else 1.
        spec: the model's preprocessing, because the limit on pixels also holds after resizing.
        limits: the limits.

    Raises:
        TooManyPixels, TooManyFrames: it exceeds a limit.
    """
    if frames > limits.max_frames:
        raise TooManyFrames(f"The image has {frames} frames; the limit is {limits.max_frames} frames.")
    (width, height), max_pixels = size, limits.max_pixels
    if width * height > max_pixels:
        raise TooManyPixels(f"The image has {width} × {height} pixels; the limit is {max_pixels} pixels.")
    resized = resized_size(size, spec.resize)
    if resized[0] * resized[1] > max_pixels:
        raise TooManyPixels(
            f"The image has {width} × {height} pixels, which is {resized[0]} × {resized[1]} once its shorter side is "
            f"{spec.resize}; the limit is {max_pixels} pixels."
        )


def damaged(format_name: str) -> UndecodableImage:
    """Returns the error of a damaged file."""
    return UndecodableImage(f"The {format_name} image cannot be decoded: it is truncated or corrupt.")
