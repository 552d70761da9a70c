"""Images that claim, contain or cost more than they should. Each is smaller than 20 MiB."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from PIL import Image

from tests.hostile.avif import (
    Item,
    avif,
    avif_grid,
    avif_named_twice,
    avif_of_associations,
    avif_of_runs,
    avif_of_samples,
    avif_of_size,
    avif_of_track_items,
    avif_of_two_descriptions,
    coded,
    frames_in_one,
    full,
)
from tests.hostile.damaged import DAMAGED

Entry = tuple[int, int, int, int]  # of a TIFF directory: tag, type, number of values, value or offset

_MANY_BYTES = 19_000_000
_SHARED = 200  # offset of data that several strips or tags share
_SMALL = Image.radial_gradient("L").convert("RGB")


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def zeros(count: int) -> bytes:
    """So many zero bytes, deflated to about a thousandth."""
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
    """A progressive JPEG whose last scan is repeated; each scan costs a pass over all pixels."""
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
    """The entries that an 8-bit greyscale TIFF needs; compression 8 is deflate."""
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
    """Small frames on a canvas of the given size."""
    picture = encoded(_SMALL, format="WEBP", lossless=True)[12:]
    three = [struct.pack("<I", number)[:3] for number in (width - 1, height - 1, 255)]
    extended = b"VP8X" + struct.pack("<II", 10, 2) + three[0] + three[1]
    frame = bytes(6) + three[2] * 2 + bytes(4) + picture
    frame = b"ANMF" + struct.pack("<I", len(frame)) + frame
    return webp(extended + b"ANIM" + struct.pack("<I", 6) + bytes(6) + frame * frames)


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


def _tiff_of_shared_strips(count: int) -> bytes:
    """Strips of one row that all share the same megabyte of empty deflate blocks."""
    row = b"\x01" + struct.pack("<HH", 10, 10 ^ 0xFFFF) + bytes(10)
    strip = b"\x78\x01" + b"\0\0\0\xff\xff" * 200_000 + row + struct.pack(">I", zlib.adler32(bytes(10)))
    tables = struct.pack(f"<{count}I", *[_SHARED + 8 * count] * count) + struct.pack(
        f"<{count}I", *[len(strip)] * count
    )
    entries = [*tiff_entries(10, count, t278=1), (273, 4, count, _SHARED), (279, 4, count, _SHARED + 4 * count)]
    return tiff(entries).ljust(_SHARED, b"\0") + tables + strip


def _tiff_of_one_strip(count: int) -> bytes:
    """Strips of one row that share their bytes, as written by encoders that deduplicate tiles."""
    return _tiff_of_strips_that_are(zlib.compress(bytes(10)), count)


def _tiff_of_strips_that_are(strip: bytes, count: int) -> bytes:
    tables = struct.pack(f"<{count}I", *[_SHARED + 8 * count] * count) + struct.pack(
        f"<{count}I", *[len(strip)] * count
    )
    entries = [*tiff_entries(10, count, t278=1), (273, 4, count, _SHARED), (279, 4, count, _SHARED + 4 * count)]
    return tiff(entries).ljust(_SHARED, b"\0") + tables + strip


def _tiff_of_shared_tags(count: int, size: int) -> bytes:
    """Unknown tags that each claim all bytes of the file."""
    strip = zlib.compress(bytes(81))
    at = 20_000
    entries = [*tiff_entries(9, 9, t273=at, t279=len(strip)), *((40_000 + n, 7, size, at) for n in range(count))]
    return tiff(entries).ljust(at, b"\0") + strip + bytes(size)


def _tiff_of_values(tag: int, kind: int, count: int) -> bytes:
    return tiff(
        [*tiff_entries(9, 9, compression=1, t273=_SHARED, t279=81), (tag, kind, count, _SHARED)], bytes(8 * count)
    )


def _tiff_of_tile(side: int) -> bytes:
    """An image of 9 × 9 pixels in a large tile of 16-bit RGBA."""
    data = zeros(side * side * 8)
    entries = tiff_entries(9, 9, t262=2, t277=4, t322=side, t323=side, t324=_SHARED + 8, t325=len(data), t338=2)
    entries = [each for each in entries if each[0] not in (258, 278)] + [(258, 3, 4, _SHARED)]
    return tiff(entries).ljust(_SHARED, b"\0") + struct.pack("<4H", 16, 16, 16, 16) + data


def _tiff_of_scans(side: int, scans: int) -> bytes:
    """A TIFF whose only strip is a progressive JPEG."""
    data = jpeg_of_scans(side, scans)
    entries = tiff_entries(side, side, compression=7, t262=6, t277=3, t273=_SHARED, t279=len(data))
    return tiff(entries).ljust(_SHARED, b"\0") + data


def exif_of_values(count: int, tag: int = 0x9000) -> bytes:
    """EXIF data with an orientation and a tag of so many fractions."""
    return tiff([(274, 3, 1, 3), (tag, 5, count, 99)]).ljust(99, b"\0") + b"\0\1\0\1\0\1\0\1" * count


def jpeg_of_exif(data: bytes) -> bytes:
    """A JPEG with EXIF in as many segments as needed; without JFIF, so that EXIF gives the resolution."""
    plain = encoded(_SMALL, format="JPEG")
    parts = (data[start : start + 65_000] for start in range(0, len(data), 65_000))
    return plain[:2] + b"".join(segment(0xE1, b"Exif\0\0" + part) for part in parts) + plain[20:]


# Images that have to be refused: name → how to make one, status.
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
    "png of a million chunks": (lambda: png(9, 9, zeros(243), more=png_chunk(b"tEXt", b"a\0b") * 1_250_000), 422),
    "png of a million empty data chunks": (
        lambda: (
            b"\x89PNG\r\n\x1a\n"
            + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))
            + png_chunk(b"IDAT", b"") * 1_580_000
        ),
        422,
    ),
    "jpeg 65,535 × 65,535": (lambda: jpeg_of_size(65_535, 65_535), 413),
    "jpeg of 3000 scans": (lambda: jpeg_of_scans(7000, 3000), 422),
    "jpeg of empty segments": (lambda: jpeg(segment(0xFE, b"") * (_MANY_BYTES // 4)), 422),
    "jpeg of fill bytes": (lambda: jpeg(b"\xff" * _MANY_BYTES), 422),
    "gif of 10,000 frames": (lambda: animated_gif(10_000), 413),
    "gif of a screen of 65,535": (lambda: b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + animated_gif(1)[10:], 413),
    "gif of nine million comments": (
        lambda: animated_gif(1)[:781] + b"\x21\xfe" + b"\x01a" * 9_000_000 + b"\0" + animated_gif(1)[781:],
        422,
    ),
    "gif without its data": (lambda: b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"\x3b", 422),
    "webp of a canvas of 16,383": (lambda: animated_webp(16_383, 16_383), 413),
    "webp of 10,000 frames": (lambda: animated_webp(256, 256, 2_000), 413),
    "webp that claims 16,384": (lambda: _webp_that_claims(16_384, 16_384), 413),
    "webp that claims more than it has": (lambda: _webp_that_claims(3000, 3000), 422),
    "avif that claims 60,000": (lambda: avif_of_size(60_000, 60_000), 422),
    "avif of 40,000 items": (lambda: avif([coded(64, 64)] + [Item(b"mime")] * 40_000), 422),
    "avif of items without bytes": (lambda: avif([coded(64, 64)], more_extents=b"\0\2\0\0\0\0\xff\xff" * 8_000), 422),
    "avif of shared bytes": (lambda: avif([coded(64, 64), Item(b"mime", b"", extents=[(0, 19 << 20)] * 900)]), 422),
    "avif of a million properties": (lambda: avif([replace(coded(64, 64), properties=full(b"pixi", 0) * 10**6)]), 422),
    "avif of tables without end": (lambda: avif_of_associations(1_000, 1_000_000), 422),
    "avif of a track with items": (lambda: avif_of_track_items(16_000), 422),
    "avif of frames in one item": (lambda: avif([frames_in_one(coded(5_000, 4_000), 60)]), 422),
    "avif of 2,000,000 samples": (lambda: avif_of_samples(2_000_000), 413),
    "avif of runs of samples": (lambda: avif_of_runs(2_000_000), 422),
    "tiff of 60,000 entries": (
        lambda: tiff([(tag, 7, _MANY_BYTES, 8) for tag in range(1000, 60_000)], bytes(_MANY_BYTES - 720_000)),
        422,
    ),
    "tiff of a tile of 30,000": (
        lambda: tiff(
            [*tiff_entries(9, 9, t322=30_000, t323=30_000, t324=200, t325=1_000_000)], bytes(200) + zeros(900 << 20)
        ),
        422,
    ),
    "tiff 60,000 × 60,000": (lambda: tiff(tiff_entries(60_000, 60_000, t273=200, t279=999), zeros(1 << 20)), 413),
    "tiff of two million strips": (lambda: _tiff_of_strips(2_000_000), 413),
    "tiff whose directory is beyond all": (lambda: b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(99), 422),
    "tiff whose directory is missing": (lambda: b"II*\0\xff\xff\xff\xff" + bytes(99), 422),
    "tiff of strips that share their bytes": (lambda: _tiff_of_shared_strips(5_000), 422),
    "tiff of tags that share their bytes": (lambda: _tiff_of_shared_tags(1_000, 18_000_000), 422),
    "tiff of a tile larger than its picture": (lambda: _tiff_of_tile(7_056), 422),
    "tiff of a JPEG of many scans": (lambda: _tiff_of_scans(6_000, 60), 422),
    "bmp that claims 7000 × 7000": (lambda: bmp(7000, 7000, 32, 0, b""), 422),
    "bmp of runs of nothing": (lambda: bmp(7000, 7000, 8, 1, b"\0\2\0\0" * 4_700_000), 422),
    "bmp of single runs": (lambda: bmp(7000, 7000, 8, 1, b"\1\0" * 9_400_000), 422),
    "bmp of negative sizes": (lambda: bmp(-7000, -(2**31), 32, 0, bytes(99)), 413),
}
REFUSED |= {name: (make, 422) for name, make in DAMAGED.items()}
# Unusual images that have to be accepted.
ACCEPTED: dict[str, Callable[[], bytes]] = {
    "png of data that goes on": lambda: png(9, 9, zeros(1000 << 20)),
    "jpeg of 2000 scans of few pixels": lambda: jpeg_of_scans(500, 2000),
    "jpeg of a large colour profile": lambda: jpeg(segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000)) * 290),
    "png of much EXIF": lambda: png(9, 9, zeros(252), more=png_chunk(b"eXIf", exif_of_values(2_000_000))),
    "jpeg of as much EXIF as may be": lambda: jpeg_of_exif(exif_of_values(60_000, 0x11A)),
    "avif of tiles that are there once": lambda: avif_grid(64, 2, 2, shared=True),
    "avif of a grid": lambda: avif_grid(64, 8, 8),
    "jpeg of broken EXIF": lambda: jpeg(segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(999))),
    "tiff of strips that are alike and there once": lambda: _tiff_of_one_strip(3_000),
    "tiff that points to itself": lambda: tiff(
        tiff_entries(10, 10, compression=1, t273=200, t279=100), bytes(300), following=8
    ),
    "avif of a grid that claims less than it has": lambda: avif_grid(64, 8, 8, claimed=(64, 64)),
    "avif of an item that is named twice": avif_named_twice,
    "avif of two descriptions": avif_of_two_descriptions,
    "avif of much EXIF": lambda: avif([coded(64, 64), Item(b"Exif", bytes(4) + exif_of_values(700_000))]),
    "tiff of a million resolutions": lambda: _tiff_of_values(282, 5, 1_000_000),
    "tiff of private numbers": lambda: _tiff_of_values(34_675, 5, 1_000_000),
}
# Images that take much time or memory; they are decoded, or refused where that is more than a decoder may have.
BOUNDED: dict[str, Callable[[], bytes]] = {
    "jpeg of zeros": lambda: jpeg(segment(0xE0, b"") + bytes(_MANY_BYTES)),
    "avif that claims more than it has": lambda: avif_of_size(7_000, 7_000),
    "avif that claims less than it has": lambda: avif([replace(coded(11_000, 11_000), size=(64, 64))]),
    "avif of parts that are large together": lambda: avif([coded(7_000, 7_000)] * 4),
    "jpeg of much EXIF": lambda: jpeg_of_exif(exif_of_values(2_000_000, 0x11A)),
}
