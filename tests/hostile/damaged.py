"""Images whose headers are in order and whose pixels are not: only a decoder can find out."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from PIL import Image

from tests.hostile import avif


def _noise(side: int = 300) -> Image.Image:
    return Image.frombytes("RGB", (side, side), random.Random(side).randbytes(side * side * 3))


def _encoded(format_name: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or _noise()).save(buffer, format_name, **options)
    return buffer.getvalue()


def _cut(data: bytes, share: float = 0.5) -> bytes:
    return data[: int(len(data) * share)]


def _overwritten(data: bytes, share: float, length: int = 2000, value: bytes = b"\xff") -> bytes:
    """The data with a part overwritten, which begins after the given share of it."""
    at = int(len(data) * share)
    return data[:at] + value * length + data[at + length :]


def _without_segments(data: bytes, marker: int) -> bytes:
    """A JPEG without the segments of a marker."""
    kept, at = data[:2], 2
    while data[at + 1] != 0xDA:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] != marker:
            kept += data[at : at + length]
        at += length
    return kept + data[at:]


def _jpeg_header(at: int, value: int) -> bytes:
    """A JPEG with another byte in its frame header."""
    data = _encoded("JPEG")
    start = data.index(b"\xff\xc0") + at
    return data[:start] + bytes((value,)) + data[start + 1 :]


def _png(side: int, compressed: bytes, interlaced: int = 0) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def _tiff(compression: int, data: bytes, side: int = 2000, bits: int = 8, **more: int) -> bytes:
    """A greyscale TIFF of one strip; more: entries by `tNUMBER`."""
    values = {256: side, 257: side, 258: bits, 259: compression, 262: 1, 273: 300, 277: 1, 278: side, 279: len(data)}
    values |= {int(key[1:]): value for key, value in more.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(values)) + entries + bytes(4)
    return head.ljust(300, b"\0") + data


def _bmp(bits: int, compression: int, data: bytes, side: int = 2000) -> bytes:
    palette = bytes(4 << bits) if bits <= 8 else b""
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + len(palette)) + header + palette + data


def _gif(data: bytes, side: int = 2000, bits: int = 8) -> bytes:
    blocks = b"".join(bytes((len(part),)) + part for part in (data[at : at + 255] for at in range(0, len(data), 255)))
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0) + bytes((bits,)) + blocks + b"\0"
    return b"GIF89a" + struct.pack("<HHBBB", side, side, 0xF7, 0, 0) + bytes(768) + frame + b"\x3b"


def _avif_of_noise() -> avif.Item:
    item = avif.coded(300, 300)
    data = avif.encoded(_noise())
    return replace(item, data=data[data.index(b"mdat") + 4 :])


_GARBAGE = random.Random(5).randbytes(100_000)

DAMAGED: dict[str, Callable[[], bytes]] = {
    "png cut off": lambda: _cut(_encoded("PNG")),
    "png of 7000 × 7000, interlaced, without most rows": lambda: _png(7000, zlib.compress(bytes(21_001 * 10)), 1),
    "png of broken deflate": lambda: _png(300, _overwritten(zlib.compress(_noise().tobytes()), 0.4)),
    "png of garbage": lambda: _png(2000, _GARBAGE),
    "jpeg cut off": lambda: _cut(_encoded("JPEG")),
    "jpeg of 7000 × 7000 cut off": lambda: _cut(_encoded("JPEG", Image.new("RGB", (7000, 7000)))),
    "jpeg, progressive, cut off": lambda: _cut(_encoded("JPEG", progressive=True)),
    "jpeg without Huffman tables for its scan": lambda: _without_segments(_encoded("JPEG", progressive=True), 0xC4),
    "jpeg without quantisation tables": lambda: _without_segments(_encoded("JPEG"), 0xDB),
    "jpeg of samplings that do not exist": lambda: _jpeg_header(11, 0x55),
    "jpeg of 12 bits": lambda: _jpeg_header(4, 12),
    "jpeg of a table that is not there": lambda: _jpeg_header(12, 3),
    "gif cut off": lambda: _cut(_encoded("GIF", _noise().convert("P"))),
    "gif of garbage": lambda: _gif(_GARBAGE),
    "gif of codes of 13 bits": lambda: _gif(bytes(100), bits=13),
    "gif of nothing but clear codes": lambda: _gif(bytes.fromhex("000102") * 9),
    "webp cut off": lambda: _cut(_encoded("WEBP")),
    "webp, lossless, cut off": lambda: _cut(_encoded("WEBP", lossless=True)),
    "webp, lossless, of broken tables": lambda: _overwritten(_encoded("WEBP", lossless=True), 0.0002, 400),
    "bmp cut off": lambda: _cut(_encoded("BMP")),
    "bmp of runs cut off": lambda: _bmp(8, 1, b"\xff\1" * 3000),
    "bmp of runs of 4 bits cut off": lambda: _bmp(4, 2, b"\xff\1" * 3000),
    "bmp of a JPEG": lambda: _bmp(24, 4, _encoded("JPEG")),
    "bmp of masks that do not exist": lambda: _bmp(16, 3, b"\x55" * 8_000_012),
    "tiff cut off": lambda: _cut(_encoded("TIFF", compression="tiff_lzw")),
    "tiff of LZW that is garbage": lambda: _tiff(5, _GARBAGE),
    "tiff of deflate that is garbage": lambda: _tiff(8, _GARBAGE),
    "tiff of deflate that ends early": lambda: _tiff(8, zlib.compress(bytes(2000 * 10))),
    "tiff of runs that end early": lambda: _tiff(32_773, b"\x81\0" * 100),
    "tiff of a JPEG that is garbage": lambda: _tiff(7, _GARBAGE),
    "tiff of LZMA that is garbage": lambda: _tiff(34_925, _GARBAGE),
    "tiff of Zstandard that is garbage": lambda: _tiff(50_000, _GARBAGE),
    "tiff of floating point": lambda: _tiff(1, bytes(2000 * 2000 * 4), bits=32, t339=3),
    "tiff of an unknown compression": lambda: _tiff(12_345, _GARBAGE),
    "avif cut off": lambda: _cut(avif.encoded(_noise())),
    "avif of frames that are garbage": lambda: avif.avif([replace(_avif_of_noise(), data=_GARBAGE)]),
}
