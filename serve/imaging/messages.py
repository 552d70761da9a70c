"""Messages between the server and its decoder processes: fixed layouts of numbers, no text."""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from serve.imaging.formats import ACCEPTED_FORMATS
from serve.imaging.limits import ImageLimits
from serve.imaging.preprocess import INTERPOLATIONS, Preprocessing
from serve.imaging.varieties import VARIETIES

# Descriptors of a decoder process: two pipes, and the memory that begins with the crop. The encoded image follows, in
# whose place the view is returned, if one is wanted.
REQUESTS, REPLIES, MEMORY = 3, 4, 5
# Sent for `Code.LARGE` once the decoder may use more memory.
GO_ON: Final = b"+"

# The longest side of a view, in pixels, and the bytes that it takes at most.
MAX_VIEW: Final = 1024
VIEW_BYTES: Final = MAX_VIEW**2 * 3

_ORIENTATION: Final = 1
_EXACT: Final = 2
_JPEG: Final = 4


class Code(IntEnum):
    """What a reply says."""

    READY = 1  # width: the process id; height: whether the process is sealed
    DONE = 2
    LARGE = 3  # the image needs much memory, and the decoder waits for `GO_ON`
    OVER_LIMIT = 4
    DAMAGED = 5
    UNSUPPORTED = 6  # variety: the position in `VARIETIES`
    NO_MEMORY = 7


@dataclass(frozen=True)
class Rules:
    """How images are decoded.

    Attributes:
        spec: the model's preprocessing.
        limits: what is refused.
        apply_orientation: whether EXIF's orientation is applied.
        exact: whether the pixels are exactly torchvision's.
        jpeg: whether the crop is returned as a JPEG file, padded with zeros to the number of bytes of its pixels.
    """

    spec: Preprocessing
    limits: ImageLimits
    apply_orientation: bool = True
    exact: bool = False
    jpeg: bool = False


class Request(NamedTuple):
    """One image to decode.

    Attributes:
        format_name: its format, as `sniff_format` names it.
        length: its number of bytes.
        rules: how it is decoded.
        small_pixels: an image of more pixels than these is large.
        view: the longer side of the whole image to return beside the crop, at most `MAX_VIEW` pixels; 0 for none.
    """

    format_name: str
    length: int
    rules: Rules
    small_pixels: int
    view: int = 0

    def pack(self) -> bytes:
        """Returns the message."""
        rules = self.rules
        return _REQUEST.pack(
            ACCEPTED_FORMATS.index(self.format_name),
            INTERPOLATIONS.index(rules.spec.interpolation),
            _ORIENTATION * rules.apply_orientation | _EXACT * rules.exact | _JPEG * rules.jpeg,
            rules.spec.resize,
            rules.spec.crop,
            self.view,
            self.length,
            rules.limits.max_pixels,
            rules.limits.max_frames,
            self.small_pixels,
        )

    @classmethod
    def unpack(cls, message: bytes) -> "Request":
        """Reads a message; mean and deviation are not in it, because they matter to the server only."""
        kind, interpolation, flags, resize, crop, view, length, max_pixels, max_frames, small = _REQUEST.unpack(message)
        spec = Preprocessing(resize, INTERPOLATIONS[interpolation], crop, (0, 0, 0), (1, 1, 1))
        switches = (bool(flags & each) for each in (_ORIENTATION, _EXACT, _JPEG))
        rules = Rules(spec, ImageLimits(max_pixels, max_frames), *switches)
        return cls(ACCEPTED_FORMATS[kind], length, rules, small, view)


class Reply(NamedTuple):
    """An answer.

    Attributes:
        code: one of `Code`.
        width, height, frames: the figures of the image's header, as far as they are known.
        resize_ns: nanoseconds of resizing.
        variety: see `Code.UNSUPPORTED`.
        turned: whether width and height have changed places in the upright image.
    """

    code: int
    width: int = 0
    height: int = 0
    frames: int = 0
    resize_ns: int = 0
    variety: int = 0
    turned: bool = False

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        return (self.height, self.width) if self.turned else (self.width, self.height)

    def pack(self) -> bytes:
        """Returns the message."""
        return _REPLY.pack(*self)

    @classmethod
    def unpack(cls, message: bytes) -> "Reply":
        """Reads a message; raises `struct.error` for one of another length, and `ValueError` for an unknown number."""
        reply = cls(*_REPLY.unpack(message))
        if reply.variety >= len(VARIETIES):
            raise ValueError(f"there is no variety {reply.variety}")
        return reply._replace(code=Code(reply.code))


_REQUEST: Final = struct.Struct("=BBBxIIIQQQQ")
_REPLY: Final = struct.Struct("=B3xIIIQB?6x")
REQUEST_BYTES: Final = _REQUEST.size
REPLY_BYTES: Final = _REPLY.size
