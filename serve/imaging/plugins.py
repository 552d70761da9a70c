"""Pillow's plug-ins for the accepted formats, changed where they would misjudge a sound image.

They name the variety of what is not supported (`UnsupportedVariety`), and ignore what is broken beside the pixels.
"""

import io
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    ImagePalette,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from serve.imaging.formats import ACCEPTED_FORMATS, HEIC
from serve.imaging.tiff import TiffFile
from serve.imaging.varieties import Variety, unsupported

# Decode on the calling thread; by default the AV1 decoder starts a thread per CPU.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

# Markers of frames (ITU-T T.81, table B.1, and T.87): lossless, the same with arithmetic coding, JPEG-LS, hierarchical.
_LOSSLESS, _LOSSLESS_ARITHMETIC, _LS = 0xFFC3, 0xFFCB, 0xFFF7
_ARITHMETIC: Final = (0xFFC9, 0xFFCA)
_TEMPORARY: Final = 0xFF01
_END: Final = b"\xff\xd9"
_NUMBER_OF_LINES: Final = b"\xff\xdc"
_WHOLE_FILE: Final = 2**30
# Frames that are decoded row by row: baseline and extended sequential.
_SEQUENTIAL: Final = (0xFFC0, 0xFFC1)
_HEIGHT_AT: Final = 3  # in the segment of a frame, after its length and the bits of a sample
_BLOCK_SIDE: Final = 8
_VERTICAL: Final = 2  # where Pillow keeps the vertical sampling factor of a component
# Rows that are not exact, because libjpeg interpolates their colour from the rows below.
_COLOUR_ROWS: Final = 2
_HIERARCHICAL: Final = (0xFFC5, 0xFFC6, 0xFFC7, 0xFFCD, 0xFFCE, 0xFFCF, 0xFFDE)
_CRITICAL_CHUNKS: Final = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# What Pillow's readers of chunks raise, AttributeError if there is none; but not EOFError, after which pixels follow.
_UNREADABLE: Final = (AttributeError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error)
_CORE_HEADER_BYTES: Final = 12
_OS2_SHORT_HEADER_BYTES, _OS2_HEADER_BYTES = 16, 64
# In OS/2's header 3 and 4 stand for other compressions.
_BIT_FIELDS: Final = 3
_BMP_COMPRESSIONS: Final = {4: Variety.BMP_JPEG, 5: Variety.BMP_PNG}
_BMP_PALETTE_MODES: Final = {1: "P;1", 4: "P;4", 8: "P"}


class Jpeg(JpegImagePlugin.JpegImageFile):
    """Pillow's JPEG; `info` has `lossless` if it is."""

    height_at = 0  # where the file has its height; 0 if all its rows have to be decoded

    def rows_to(self, row: float) -> int:
        """Returns how many rows have to be decoded for those above `row`; 0 if all have to be.

        Args:
            row: in pixels as `draft` has left them, like the result.
        """
        scale, unit = (self.decoderconfig or (1,))[0], _BLOCK_SIDE * max(layer[_VERTICAL] for layer in self.layer)
        rows = math.ceil((row + _COLOUR_ROWS) * scale / unit) * unit // scale
        fp: Any = self.fp
        fp.seek(-len(_END), os.SEEK_END)
        is_complete = fp.read() == _END  # or what is missing would not be noticed
        return rows if 0 < self.height_at < self.decodermaxblock and rows < self.height and is_complete else 0

    def decode_only(self, rows: int) -> None:
        """Has only so many rows decoded, a number that `rows_to` returned."""
        fp: Any = self.fp
        fp.seek(0)
        # libjpeg takes this for the height, and reads no further.
        height = rows * (self.decoderconfig or (1,))[0]
        self.tile_prefix = fp.read(self.height_at) + height.to_bytes(2, "big")
        self._size = (self.width, rows)
        self.tile = [self.tile[0]._replace(offset=len(self.tile_prefix), extents=(0, 0, *self.size))]

    def _read_dpi_from_exif(self) -> None:
        """Does nothing, because the EXIF may be broken."""


_ReadSegment = Callable[[Jpeg, int], None]


def _read_application(image: Jpeg, marker: int) -> None:
    """Reads a segment of an application, which may be broken."""
    with suppress(LookupError, ValueError, struct.error):
        JpegImagePlugin.APP(image, marker)


def _read_frame(image: Jpeg, marker: int) -> None:
    """Reads the header of the frame."""
    fp: Any = image.fp
    image.height_at = fp.tell() + _HEIGHT_AT if marker in _SEQUENTIAL else 0
    image.icclist = []  # a broken colour profile would be an error
    try:
        JpegImagePlugin.SOF(image, marker)
    except SyntaxError:
        if marker == _LOSSLESS and image.bits != 8:
            raise unsupported(Variety.JPEG_LOSSLESS) from None
        if image.bits == 12:
            raise unsupported(Variety.JPEG_12_BIT) from None
        if image.bits == 8:
            raise unsupported(Variety.JPEG_COMPONENTS) from None
        raise
    if image.width and not image.height and _has_later_height(image):
        raise unsupported(Variety.JPEG_LATE_HEIGHT)
    if marker in _ARITHMETIC:  # their decoder cannot wait for more of the file
        image.decodermaxblock = _WHOLE_FILE
    for factors in zip(*(layer[1:3] for layer in image.layer), strict=True):
        if any(factor and max(factors) % factor for factor in factors):
            raise unsupported(Variety.JPEG_SAMPLING)
    image.info["lossless"] = marker == _LOSSLESS


def _has_later_height(image: Jpeg) -> bool:
    fp: Any = image.fp
    here = fp.tell()
    found = _NUMBER_OF_LINES in fp.read()
    fp.seek(here)
    return found


def _refuse_frame(variety: Variety) -> _ReadSegment:
    def refuse(image: Jpeg, marker: int) -> None:
        raise unsupported(variety)

    return refuse


def _read_segments(markers: Iterable[int], read: _ReadSegment) -> None:
    table: dict[int, Any] = JpegImagePlugin.MARKER
    table |= dict.fromkeys(markers, ("", "", read))


_read_segments(range(0xFFE0, 0xFFF0), _read_application)
_read_segments((0xFFC0, 0xFFC1, 0xFFC2, _LOSSLESS, *_ARITHMETIC), _read_frame)
_read_segments([_TEMPORARY], lambda image, marker: None)  # it has no length
_read_segments(_HIERARCHICAL, _refuse_frame(Variety.JPEG_HIERARCHICAL))
_read_segments([_LOSSLESS_ARITHMETIC], _refuse_frame(Variety.JPEG_LOSSLESS))
_read_segments([_LS], _refuse_frame(Variety.JPEG_LS))


class _PngStream(PngImagePlugin.PngStream):
    """Pillow's reader of chunks, which leaves out ancillary ones that are damaged or too large."""

    def call(self, cid: bytes, pos: int, length: int) -> bytes:
        if cid in _CRITICAL_CHUNKS:
            return super().call(cid, pos, length)
        if cid[:1].isupper() and not self.im_tile:
            raise unsupported(Variety.PNG_CGBI if cid == b"CgBI" else Variety.PNG_CHUNK)
        fp: Any = self.fp
        data: bytes = fp.read(length)
        if zlib.crc32(data, zlib.crc32(cid)) == int.from_bytes(fp.read(4), "big"):
            fp.seek(pos)
            with suppress(*_UNREADABLE):
                return super().call(cid, pos, length)
        fp.seek(pos + len(data))
        return data

    def crc(self, cid: bytes, data: bytes) -> None:
        (super().crc if cid[:1].isupper() else self.crc_skip)(cid, data)


PngImagePlugin.PngStream = _PngStream  # type: ignore[misc]


class _Png(PngImagePlugin.PngImageFile):
    """Pillow's PNG, which would show numbers without a palette as greys."""

    def _open(self) -> None:
        super()._open()
        if self.mode == "P" and self.palette is None:
            raise SyntaxError("there is no palette")


class _Bmp(BmpImagePlugin.BmpImageFile):
    """Pillow's BMP, with palettes of greys of any depth."""

    def _bitmap(self, header: int = 0, offset: int = 0) -> None:
        fp: Any = self.fp
        head = fp.read(20)
        fp.seek(-len(head), os.SEEK_CUR)
        size = head[0]
        if size == _OS2_SHORT_HEADER_BYTES:
            raise unsupported(Variety.BMP_HEADER)
        # Pillow keeps neither of the two numbers.
        bits, compression = (head[10], 0) if size == _CORE_HEADER_BYTES else struct.unpack_from("<HI", head, 14)
        if compression > (_BIT_FIELDS - 1 if size == _OS2_HEADER_BYTES else _BIT_FIELDS):
            named = {} if size == _OS2_HEADER_BYTES else _BMP_COMPRESSIONS
            raise unsupported(named.get(compression, Variety.BMP_COMPRESSION))
        if bits not in BmpImagePlugin.BIT2MODE:
            raise unsupported(Variety.BMP_DEPTH)
        try:
            super()._bitmap(header, offset)
        except OSError:
            if self.mode and compression == _BIT_FIELDS:
                raise unsupported(Variety.BMP_BIT_FIELDS) from None
            raise
        # Pillow takes a palette of greys for levels of grey, whatever the number of bits.
        if self.mode in ("1", "L") and (self.mode, bits) not in (("1", 1), ("L", 8)):
            levels = (0, 255) if self.mode == "1" else range(256)
            self._mode, self.palette = "P", ImagePalette.raw("RGB", bytes(value for value in levels for _ in range(3)))
            decoder, extents, start, args = self.tile[0]
            self.tile = [ImageFile._Tile(decoder, extents, start, (_BMP_PALETTE_MODES[bits], *tuple(args or ())[1:]))]


class _Avif(AvifImagePlugin.AvifImageFile):
    """Pillow's AVIF, whose EXIF may be broken."""

    def _open(self) -> None:
        fp: Any = self.fp
        try:
            super()._open()
        except Exception:
            fp.seek(0)
            head, mark, rest = fp.read().partition(b"mdat")
            if b"Exif" not in head:
                raise
            # Perhaps only the EXIF is broken: once more, with an item of another type in its place.
            self.fp = io.BytesIO(head.replace(b"Exif", b"free") + mark + rest)
            super()._open()


# By our names of formats.
OPENERS: Final[dict[str, type[ImageFile.ImageFile]]] = {
    "JPEG": Jpeg,
    "PNG": _Png,
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": _Bmp,
    "TIFF": TiffFile,
    "AVIF": _Avif,
}
if HEIC in ACCEPTED_FORMATS:
    import pi_heif

    # libheif starts no threads of its own; libde265, below it, starts one for each image or tile all the same.
    pi_heif.options.DECODE_THREADS = 0
    pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False
    OPENERS[HEIC] = pi_heif.HeifImageFile
