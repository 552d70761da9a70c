"""Recognises the accepted image formats by their first bytes, and JPEGs whose header is quick to read."""

import re
from typing import Final

ACCEPTED_FORMATS: Final = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF")

# The first bytes of each format. BMP's two letters also begin many texts, so the size of its second header (the known
# versions of BITMAPINFOHEADER) is checked too.
_SIGNATURES: Final = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL),
    "TIFF": re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"),
    "AVIF": re.compile(rb".{4}ftyp(.{4})*?avi[fs]", re.DOTALL),
}
_SIGNATURE_BYTES: Final = 64

# JPEG's markers (ITU-T T.81, table B.1); ordinary files have ten or twenty segments before their pixels.
_START_OF_SCAN: Final = b"\xff\xda"
_FIRST_MARKER_WITH_LENGTH: Final = 0xC0
_QUICK_SEGMENTS: Final = 64
_QUICK_BYTES: Final = 256 * 1024
_QUICK_FILE_BYTES: Final = 2**20
# Segments whose entries are all parsed: EXIF's and Photoshop's (APP13).
_EXIF, _PHOTOSHOP = b"Exif\0\0", b"Photos"


def sniff_format(data: bytes) -> str | None:
    """Returns the accepted format whose signature `data` begins with, one of `ACCEPTED_FORMATS`, or None."""
    head = data[:_SIGNATURE_BYTES]
    return next((name for name, signature in _SIGNATURES.items() if signature.match(head)), None)


def is_quick_to_open(data: bytes) -> bool:
    """Returns whether the header is quick to read for certain: a small JPEG with few segments before its pixels."""
    if len(data) > _QUICK_FILE_BYTES or sniff_format(data) != "JPEG":
        return False
    position, seen = 2, []
    for _ in range(_QUICK_SEGMENTS):
        head = data[position : position + 10]
        marker = head[:2]
        if marker == _START_OF_SCAN:
            return True
        seen.append(head[4:])
        if len(head) < 10 or head[0] != 0xFF or head[1] < _FIRST_MARKER_WITH_LENGTH or position > _QUICK_BYTES:
            return False
        if seen.count(_EXIF) > 1 or seen.count(_PHOTOSHOP) > 1:
            return False
        position += 2 + int.from_bytes(head[2:4], "big")
    return False
