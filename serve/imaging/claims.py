"""Limits what a small JPEG or TIFF can make a decoder spend time or memory on: scans, tiles, strips, tags.

What cannot be parsed here passes; the decoder refuses it.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from serve.errors import TooComplex, TooManyPixels, UndecodableImage

# A progressive JPEG's scans each pass over the whole image (about 0.6 ms a megapixel), however few bytes they have:
# megapixels times scans, and so many scans in any case. Ordinary ones have ten.
_SCAN_PIXELS: Final = 2_000_000_000
_SCANS: Final = 40
_START_OF_SCAN: Final = b"\xff\xda"
_START_OF_IMAGE, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
# Segments that are looked at for scans; every scan has a few.
_SEGMENTS: Final = 10_000
# Within pixel data FF is followed by 00, by a restart marker or by another FF; anything else is a marker.
_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_FIRST_MARKER_WITH_LENGTH: Final = b"\xff\xc0"

# A JPEG's EXIF; what cameras write has less than the 64 KiB of one segment.
_EXIF: Final = b"Exif\0\0"
_EXIF_SEGMENT: Final = re.compile(rb"\xff\xe1(..)Exif\0\0", re.DOTALL)
_EXIF_BYTES: Final = 512 * 1024

# Strips or tiles; an image of 50 megapixels in tiles of 16 × 16 has 200,000.
_TIFF_PARTS: Final = 250_000
# A tile is decoded whole, however little of it is in the image.
_TIFF_TILE_PIXELS: Final = 2**22
_TIFF_ENTRIES: Final = 1024
# Some writers store tiles that are alike once: what that may come to in a file that is smaller.
_TIFF_SHARED_BYTES: Final = 2**22
# Values of a tag: what describes the pixels, colour maps and other lists, what programs keep for themselves.
_TIFF_FEW_VALUES: Final = 1024
_TIFF_VALUES: Final = 3 * 2**16
_LISTS: Final = (291, 301, 320)  # GrayResponseCurve, TransferFunction, ColorMap
_FIRST_PRIVATE: Final = 700
# Kinds of values that stay bytes, the size of each kind, and what libtiff takes for a size or a count: bytes, shorts,
# longs and 64 bits, with sign or without.
_TIFF_BYTES: Final = (1, 2, 7)
_TIFF_SIZES: Final = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_TIFF_INTEGERS: Final = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
_IMAGE_WIDTH, _IMAGE_LENGTH, _COMPRESSION, _STRIP_OFFSETS, _STRIP_BYTE_COUNTS = 256, 257, 259, 273, 279
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTE_COUNTS = 322, 323, 324, 325
_SIZES: Final = (_IMAGE_WIDTH, _IMAGE_LENGTH, _TILE_WIDTH, _TILE_LENGTH)
_PARTS: Final = (_STRIP_OFFSETS, _STRIP_BYTE_COUNTS, _TILE_OFFSETS, _TILE_BYTE_COUNTS)
_UNCOMPRESSED, _JPEG_COMPRESSIONS = 1, (6, 7)


def require_modest_scans(data: bytes, pixels: int) -> None:
    """Raises `TooComplex` for a JPEG of so many pixels that has more scans than its decoder should be asked to make."""
    limit = _scan_limit(pixels)
    if data.count(_START_OF_SCAN) <= limit:  # at least as many as there are
        return
    scans = 0
    for number, (marker, _) in enumerate(_segments(data)):
        scans += marker == _START_OF_SCAN
        if scans > limit:
            raise TooComplex(f"The JPEG image has more scans than the limit for its size, {limit} scans.")
        if number > _SEGMENTS:
            raise TooComplex(f"The JPEG image has more segments than the limit, {_SEGMENTS} segments.")


def _scan_limit(pixels: int) -> int:
    return max(_SCANS, _SCAN_PIXELS // max(1, pixels))


def is_one_scan(data: bytes, components: int) -> bool:
    """Returns whether a JPEG's first scan holds all of its components, so that it is decoded as it is read.

    Otherwise a decoder keeps the coefficients of the whole image, at every scale.
    """
    first = next((start for marker, start in _segments(data) if marker == _START_OF_SCAN), len(data))
    return data[first + 2 : first + 3] == bytes((components,))


def _segments(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yields marker and start of each of a JPEG's segments, up to the end of the image and not into what follows it."""
    position = len(_START_OF_IMAGE)
    while (found := _MARKER.search(data, position)) and found[0] != _END_OF_IMAGE:
        position = found.end()
        if found[0] >= _FIRST_MARKER_WITH_LENGTH:
            yield found[0], position
            position += int.from_bytes(data[position : position + 2], "big")


def require_modest_exif(data: bytes) -> None:
    """Raises `TooComplex` for a JPEG of much EXIF: Pillow joins its segments, and reads numbers out of them."""
    if len(data) <= _EXIF_BYTES or data.count(_EXIF) <= _EXIF_BYTES // 2**16:  # a segment has less than 64 KiB
        return
    if sum(int.from_bytes(length, "big") for length in _EXIF_SEGMENT.findall(data)) > _EXIF_BYTES:
        raise TooComplex(f"The JPEG image has more EXIF data than the limit, {_EXIF_BYTES} bytes.")


def require_modest_layout(data: bytes, max_pixels: int) -> None:
    """Raises `TooManyPixels` or `TooComplex` for a TIFF of too many pixels, in all or in a tile, too many parts, values
    or scans, and `UndecodableImage` for one that says it has more bytes than it has.
    """
    try:
        directory = _Directory(data)
        width, height = directory.number(_IMAGE_WIDTH), directory.number(_IMAGE_LENGTH)
        if width * height > max_pixels:
            raise TooManyPixels(f"The image has {width} × {height} pixels; the limit is {max_pixels} pixels.")
        across, down = directory.number(_TILE_WIDTH), directory.number(_TILE_LENGTH)
        limit = min(max_pixels, max(width * height, _TIFF_TILE_PIXELS))
        if across * down > limit:
            raise TooManyPixels(f"The TIFF image has tiles of {across} × {down}; the limit is {limit} pixels.")
        compression = directory.number(_COMPRESSION)
        if compression == _UNCOMPRESSED:
            return
        for offsets, byte_counts in ((_STRIP_OFFSETS, _STRIP_BYTE_COUNTS), (_TILE_OFFSETS, _TILE_BYTE_COUNTS)):
            lengths = directory.numbers(byte_counts)
            if sum(lengths) > max(len(data), _TIFF_SHARED_BYTES):
                raise _claims_more("strips or tiles")
            if compression in _JPEG_COMPRESSIONS:
                _require_modest_tiff_scans(data, width * height, directory.numbers(offsets), lengths)
    except (struct.error, OverflowError):
        return  # it points to where nothing is


def _require_modest_tiff_scans(data: bytes, pixels: int, offsets: Sequence[int], lengths: Sequence[int]) -> None:
    limit = _scan_limit(pixels)
    if data.count(_START_OF_SCAN) <= limit:
        return
    for offset, length in zip(offsets, lengths, strict=False):
        if data.count(_START_OF_SCAN, offset, offset + length) > limit:
            raise TooComplex(f"The TIFF image has parts of more scans than the limit for its size, {limit} scans.")


def _claims_more(what: str) -> UndecodableImage:
    return UndecodableImage(
        f"The TIFF image cannot be decoded: its {what} have more bytes than the file; it is truncated or corrupt."
    )


class _Directory:
    """A TIFF's first directory; raises what `require_modest_layout` does, and `struct.error` where it is cut off."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        big = self._unpack("H", 2) == 43  # BigTIFF
        start = self._unpack("Q" if big else "I", 8 if big else 4)
        counter, entry = ("Q", f"{self._order}HHQ8s") if big else ("H", f"{self._order}HHI4s")
        count = self._unpack(counter, start)
        if count > _TIFF_ENTRIES:
            raise TooComplex(f"The TIFF image has {count} directory entries; the limit is {_TIFF_ENTRIES}.")
        self._inline = 8 if big else 4
        self._entries: dict[int, tuple[int, int, int]] = {}  # tag → kind, number of values, where the entry has them
        size, claimed = struct.calcsize(entry), 0
        for number in range(count):
            position = start + struct.calcsize(f"={counter}") + number * size
            tag, kind, values, _ = struct.unpack_from(entry, data, position)
            self._require_modest(tag, kind, values)
            claimed += values * _TIFF_SIZES.get(kind, 0)
            self._entries.setdefault(tag, (kind, values, position + size - self._inline))
        if claimed > len(data):  # a decoder reads what it does not know as often as it is named
            raise _claims_more("tags")

    def number(self, tag: int) -> int:
        """Returns the first value of a tag if it is a whole number and in the entry itself, else 0."""
        kind, values, position = self._entries.get(tag, (0, 0, 0))
        if kind not in _TIFF_INTEGERS or not values:
            return 0
        if struct.calcsize(_TIFF_INTEGERS[kind]) <= self._inline:
            return self._unpack(_TIFF_INTEGERS[kind], position)
        if tag in _SIZES:
            raise TooComplex(f"The TIFF image's tag {tag} is not a number of at most {self._inline} bytes, the limit.")
        return 0

    def numbers(self, tag: int) -> Sequence[int]:
        """Returns a tag's values if they are whole numbers, else none."""
        kind, values, position = self._entries.get(tag, (0, 0, 0))
        if kind not in _TIFF_INTEGERS:
            return ()
        layout = f"{self._order}{values}{_TIFF_INTEGERS[kind]}"
        if struct.calcsize(layout) > self._inline:
            position = self._unpack("Q" if self._inline == 8 else "I", position)
        return struct.unpack_from(layout, self._data, position)

    def _unpack(self, layout: str, position: int) -> int:
        return int(struct.unpack_from(self._order + layout, self._data, position)[0])

    def _require_modest(self, tag: int, kind: int, values: int) -> None:
        """Tables have an entry for each part; of other numbers Pillow makes objects, many of them where it looks."""
        if tag in _PARTS:
            if values > _TIFF_PARTS:
                raise TooComplex(f"The TIFF image has {values} strips or tiles; the limit is {_TIFF_PARTS}.")
        elif kind not in _TIFF_BYTES:
            limit = _TIFF_VALUES if tag in _LISTS or tag >= _FIRST_PRIVATE else _TIFF_FEW_VALUES
            if values > limit:
                raise TooComplex(f"The TIFF image's tag {tag} has {values} values; the limit is {limit}.")
