"""Pictures that claim, hold or cost more than they should: name → encoded bytes. Each is within 20 MiB."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

Entry = tuple[int, int, int, int]  # of a TIFF directory: tag, type, number of values, value or offset

_MANY_BYTES = 19_000_000
_SMALL = Image.radial_gradient("L").convert("RGB")


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def zeros(count: int) -> bytes:
    """So many zeros, deflated: a thousandth of them."""
    deflate = zlib.compressobj(9)
    parts = [deflate.compress(bytes(1 << 20)) for _ in range(count >> 20)]
    return b"".join([*parts, deflate.compress(bytes(count & 0xFFFFF)), deflate.flush()])


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, bits: int = 8, colour: int = 2, more: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + more + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg(more: bytes = b"") -> bytes:
    """A small JPEG with something inserted after its first marker."""
    plain = encoded(_SMALL, format="JPEG")
    return plain[:2] + more + plain[2:]


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated, each time a pass over all its pixels."""
    plain = encoded(Image.new("RGB", (side, side)), format="JPEG", progressive=True)
    scan = plain[plain.rfind(b"\xff\xda") : -2]
    return plain[:-2] + scan * scans + plain[-2:]


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG that claims another size."""
    plain = encoded(_SMALL, format="JPEG")
    at = plain.find(b"\xff\xc0") + 5
    return plain[:at] + struct.pack(">HH", height, width) + plain[at + 4 :]


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def tiff(entries: list[Entry], data: bytes = b"", following: int = 0) -> bytes:
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + struct.pack("<I", following) + data


def tiff_entries(width: int, height: int, compression: int = 8, **more: int) -> list[Entry]:
    """What a TIFF of 8-bit grey needs to say; 8 is deflate."""
    values = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1, 278: height}
    values |= {int(key[1:]): value for key, value in more.items()}
    return [(tag, 4 if value > 0xFFFF else 3, 1, value) for tag, value in values.items()]


def animated_gif(frames: int) -> bytes:
    palette = bytes(range(256)) * 3
    one = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0xF7, 0, 0) + palette + one * frames + b"\x3b"


def webp(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def animated_webp(width: int, height: int, frames: int = 1) -> bytes:
    """Small frames on a canvas of any size."""
    picture = encoded(_SMALL, format="WEBP", lossless=True)[12:]
    three = [struct.pack("<I", number)[:3] for number in (width - 1, height - 1, 255)]
    extended = b"VP8X" + struct.pack("<II", 10, 2) + three[0] + three[1]
    frame = bytes(6) + three[2] * 2 + bytes(4) + picture
    frame = b"ANMF" + struct.pack("<I", len(frame)) + frame
    return webp(extended + b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame * frames)


def avif_of_size(width: int, height: int) -> bytes:
    plain = encoded(_SMALL, format="AVIF")
    at = plain.find(b"ispe") + 8
    return plain[:at] + struct.pack(">II", width, height) + plain[at + 8 :]


def bmp(width: int, height: int, bits: int, compression: int, data: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 256 if bits == 8 else 0, 0)
    palette = bytes(1024) if bits == 8 else b""
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + len(palette)) + header + palette + data


def _webp_that_claims(width: int, height: int) -> bytes:
    plain = encoded(_SMALL, format="WEBP", lossless=True)
    return plain[:21] + struct.pack("<I", (width - 1) | (height - 1) << 14) + plain[25:]


def _tiff_of_strips(count: int) -> bytes:
    entries = [*tiff_entries(10, count, compression=1, t278=1), (273, 4, count, 200), (279, 4, count, 200)]
    return tiff(entries, bytes(4 * count + 10_000))


# What has to be refused, and with which status.
REFUSED: dict[str, tuple[Callable[[], bytes], int]] = {
    "png 50,000 × 50,000": (lambda: png(50_000, 50_000, zeros(50_000 * 6_251), bits=1, colour=0), 413),
    "png of text chunks that inflate": (
        lambda: png(9, 9, zeros(243), more=png_chunk(b"zTXt", b"a\0\0" + zeros(60 << 20)) * 50),
        422,
    ),
    "png of international text that inflates": (
        lambda: png(
            9,
            9,
            zeros(243),
            more=b"".join(png_chunk(b"iTXt", b"a%d\0\1\0\0\0" % key + zeros(900 << 10)) for key in range(100)),
        ),
        422,
    ),
    "png of a colour profile that inflates": (
        lambda: png(9, 9, zeros(243), more=png_chunk(b"iCCP", b"a\0\0" + zeros(400 << 20))),
        422,
    ),
    "png of a million chunks": (lambda: png(9, 9, zeros(243), more=png_chunk(b"tEXt", b"a\0b") * 1_250_000), 413),
    "png of a million empty data chunks": (
        lambda: (
            b"\x89PNG\r\n\x1a\n"
            + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))
            + png_chunk(b"IDAT", b"") * 1_580_000
        ),
        413,
    ),
    "jpeg 65,535 × 65,535": (lambda: jpeg_of_size(65_535, 65_535), 413),
    "jpeg of 3000 scans": (lambda: jpeg_of_scans(7000, 3000), 413),
    "jpeg of empty segments": (lambda: jpeg(segment(0xFE, b"") * (_MANY_BYTES // 4)), 413),
    "jpeg of fill bytes": (lambda: jpeg(b"\xff" * _MANY_BYTES), 413),
    "jpeg of zeros": (lambda: jpeg(segment(0xE0, b"") + bytes(_MANY_BYTES)), 413),
    "gif of 10,000 frames": (lambda: animated_gif(10_000), 413),
    "gif of a screen of 65,535": (lambda: b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + animated_gif(1)[10:], 413),
    "gif of nine million comments": (
        lambda: animated_gif(1)[:781] + b"\x21\xfe" + b"\x01a" * 9_000_000 + b"\0" + animated_gif(1)[781:],
        413,
    ),
    "gif without its data": (lambda: b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"\x3b", 422),
    "webp of a canvas of 16,383": (lambda: animated_webp(16_383, 16_383), 413),
    "webp of 10,000 frames": (lambda: animated_webp(256, 256, 2_000), 413),
    "webp that claims 16,384": (lambda: _webp_that_claims(16_384, 16_384), 413),
    "webp that claims more than it has": (lambda: _webp_that_claims(3000, 3000), 422),
    "avif that claims 60,000": (lambda: avif_of_size(60_000, 60_000), 422),
    "avif that claims 16,000": (lambda: avif_of_size(16_000, 16_000), 413),
    "tiff of 60,000 entries": (
        lambda: tiff([(tag, 7, _MANY_BYTES, 8) for tag in range(1000, 60_000)], bytes(_MANY_BYTES - 720_000)),
        413,
    ),
    "tiff of a tile of 30,000": (
        lambda: tiff(
            [*tiff_entries(9, 9, t322=30_000, t323=30_000, t324=200, t325=1_000_000)], bytes(200) + zeros(900 << 20)
        ),
        413,
    ),
    "tiff 60,000 × 60,000": (lambda: tiff(tiff_entries(60_000, 60_000, t273=200, t279=999), zeros(1 << 20)), 413),
    "tiff of two million strips": (lambda: _tiff_of_strips(2_000_000), 413),
    "tiff whose directory is missing": (lambda: b"II*\0\xff\xff\xff\xff" + bytes(99), 422),
    "bmp that claims 7000 × 7000": (lambda: bmp(7000, 7000, 32, 0, b""), 422),
    "bmp of runs of nothing": (lambda: bmp(7000, 7000, 8, 1, b"\0\2\0\0" * 4_700_000), 413),
    "bmp of single runs": (lambda: bmp(7000, 7000, 8, 1, b"\1\0" * 9_400_000), 413),
    "bmp of negative sizes": (lambda: bmp(-7000, -(2**31), 32, 0, bytes(99)), 413),
}
# What is odd and all the same a picture.
ACCEPTED: dict[str, Callable[[], bytes]] = {
    "png of data that goes on": lambda: png(9, 9, zeros(1000 << 20)),
    "jpeg of 2000 scans of few pixels": lambda: jpeg_of_scans(500, 2000),
    "jpeg of a large colour profile": lambda: jpeg(segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000)) * 290),
    "jpeg of broken EXIF": lambda: jpeg(segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(999))),
    "tiff that points to itself": lambda: tiff(
        tiff_entries(10, 10, compression=1, t273=200, t279=100), bytes(300), following=8
    ),
}
