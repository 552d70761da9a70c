"""What a JPEG or a TIFF has a decoder spend time or memory on, whatever its size: scans, tiles, strips.

Errors that leave here: `TooComplex` and `TooManyPixels`. What cannot be read is left for the decoder to refuse.
"""

import re
import struct
from collections.abc import Iterator
from typing import Final

from serve.errors import TooComplex, TooManyPixels

# A progressive JPEG's scans each pass over the whole picture (about 0.6 ms a megapixel), however few bytes they have:
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

# Strips or tiles; a picture of 50 megapixels in tiles of 16 × 16 has 200,000.
_TIFF_PARTS: Final = 250_000
_TIFF_ENTRIES: Final = 1024
# What libtiff takes for a size or a count: bytes, shorts, longs and 64 bits, with sign or without.
_TIFF_INTEGERS: Final = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
_IMAGE_WIDTH, _IMAGE_LENGTH, _STRIP_OFFSETS, _STRIP_BYTE_COUNTS = 256, 257, 273, 279
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTE_COUNTS = 322, 323, 324, 325


def require_modest_scans(data: bytes, pixels: int) -> None:
    """Raise `TooComplex` for a JPEG of so many pixels that has more scans than its decoder should be asked to make."""
    limit = max(_SCANS, _SCAN_PIXELS // max(1, pixels))
    if data.count(_START_OF_SCAN) <= limit:  # at least as many as there are
        return
    scans = 0
    for number, (marker, _) in enumerate(_segments(data)):
        scans += marker == _START_OF_SCAN
        if scans > limit:
            raise TooComplex(f"The JPEG picture has more scans than the limit for its size, {limit} scans.")
        if number > _SEGMENTS:
            raise TooComplex(f"The JPEG picture has more segments than the limit, {_SEGMENTS} segments.")


def is_one_scan(data: bytes, components: int) -> bool:
    """Whether a JPEG's first scan holds all of its components, so that it is decoded as it is read; else a decoder
    keeps the whole picture's coefficients, whatever it reduces it to.
    """
    first = next((start for marker, start in _segments(data) if marker == _START_OF_SCAN), len(data))
    return data[first + 2 : first + 3] == bytes((components,))


def _segments(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Marker and start of each of a JPEG's segments, up to the end of the image and not into what follows it."""
    position = len(_START_OF_IMAGE)
    while (found := _MARKER.search(data, position)) and found[0] != _END_OF_IMAGE:
        position = found.end()
        if found[0] >= _FIRST_MARKER_WITH_LENGTH:
            yield found[0], position
            position += int.from_bytes(data[position : position + 2], "big")


def require_modest_layout(data: bytes, max_pixels: int) -> None:
    """Raise `TooManyPixels` or `TooComplex` for a TIFF of too many pixels, in all or in a tile, or too many parts."""
    try:
        entries = _first_directory(data)
    except struct.error:
        return  # truncated
    width, height = entries.get(_IMAGE_WIDTH, (0, 0))[1], entries.get(_IMAGE_LENGTH, (0, 0))[1]
    if width * height > max_pixels:
        raise TooManyPixels(f"The picture has {width} × {height} pixels; the limit is {max_pixels} pixels.")
    across, down = entries.get(_TILE_WIDTH, (0, 0))[1], entries.get(_TILE_LENGTH, (0, 0))[1]
    if across * down > max_pixels:
        raise TooManyPixels(f"The TIFF picture has tiles of {across} × {down}; the limit is {max_pixels} pixels.")
    for tag in (_STRIP_OFFSETS, _STRIP_BYTE_COUNTS, _TILE_OFFSETS, _TILE_BYTE_COUNTS):
        parts = entries.get(tag, (0, 0))[0]
        if parts > _TIFF_PARTS:
            raise TooComplex(f"The TIFF picture has {parts} strips or tiles; the limit is {_TIFF_PARTS}.")


def _first_directory(data: bytes) -> dict[int, tuple[int, int]]:
    """Tag → number of values and the first of them, where it is a whole number that fits in the entry."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43  # BigTIFF
    (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)
    counter, entry = (f"{order}Q", f"{order}HHQ8s") if big else (f"{order}H", f"{order}HHI4s")
    if start > len(data):
        return {}
    (count,) = struct.unpack_from(counter, data, start)
    if count > _TIFF_ENTRIES:
        raise TooComplex(f"The TIFF picture has {count} directory entries; the limit is {_TIFF_ENTRIES}.")
    first = start + struct.calcsize(counter)
    found: dict[int, tuple[int, int]] = {}
    for position in range(first, first + count * struct.calcsize(entry), struct.calcsize(entry)):
        tag, kind, values, inline = struct.unpack_from(entry, data, position)
        number = 0
        if kind in _TIFF_INTEGERS and struct.calcsize(_TIFF_INTEGERS[kind]) <= len(inline):
            (number,) = struct.unpack_from(f"{order}{_TIFF_INTEGERS[kind]}", inline)
        elif kind in _TIFF_INTEGERS and values == 1 and tag in (_IMAGE_WIDTH, _IMAGE_LENGTH, _TILE_WIDTH, _TILE_LENGTH):
            raise TooComplex(f"The TIFF picture's tag {tag} is not a number of at most {len(inline)} bytes, the limit.")
        found.setdefault(tag, (values, number))
    return found
