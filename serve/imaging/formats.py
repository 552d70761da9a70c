"""Recognises the accepted image formats by their first bytes."""

import re
from importlib.machinery import PathFinder
from typing import Final

# An encoded image.
Data = bytes | bytearray
# Needs pi-heif, the extra `heic`.
HEIC: Final = "HEIC"
BUILT_IN_FORMATS: Final = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF")
ACCEPTED_FORMATS: Final = (*BUILT_IN_FORMATS, HEIC) if PathFinder.find_spec("pi_heif") else BUILT_IN_FORMATS

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
    # HEVC's brands, and HEIF's general ones, which an AVIF may have as well: AVIF is tried first.
    HEIC: re.compile(rb".{4}ftyp(.{4})*?(he[iv][cxms]|mif1|msf1)", re.DOTALL),
}
SIGNATURE_BYTES: Final = 64  # how many first bytes tell the format


def sniff_format(data: Data) -> str | None:
    """Returns the format whose signature `data` begins with, one of `ACCEPTED_FORMATS` or `HEIC`, or None."""
    head = data[:SIGNATURE_BYTES]
    for name, signature in _SIGNATURES.items():
        if signature.match(head):
            return name
    return None


def webp_size(data: Data) -> tuple[int, int] | None:
    """Returns width and height of a WebP by its first chunk (RFC 9649, RFC 6386), or None if that is of no known kind.

    Its decoder allocates an image's memory before it tells the size.

    Args:
        data: an encoded image that begins like WebP.
    """
    layout = {b"VP8X": (24, 6, 24, 24, 1), b"VP8L": (21, 4, 14, 14, 1), b"VP8 ": (26, 4, 16, 14, 0)}.get(
        bytes(data[12:16])
    )
    if layout is None:
        return None
    start, length, height_at, bits, added = layout
    number = int.from_bytes(data[start : start + length], "little")
    mask = (1 << bits) - 1
    return (number & mask) + added, (number >> height_at & mask) + added


def heic_ends_early(data: Data) -> bool:
    """Returns whether a HEIC's metadata or pixels go on beyond the end of the file (ISO/IEC 14496-12, 4.2).

    libheif itself decodes a grid of which tiles are missing.

    Args:
        data: an encoded image that begins like HEIC.
    """
    at = 0
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0: the box goes on to the end of the file; else it is none
            break
        at += size
        if at > len(data):
            return kind in (b"meta", b"mdat")  # cameras append data of their own
    return False
