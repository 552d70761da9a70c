"""What is broken or large beside the pixels, such as texts, profiles and EXIF, is no reason to refuse an image."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from serve.errors import UndecodableImage
from serve.imaging.decode import decode, read_header
from serve.imaging.limits import require_format
from tests.field import tiffs
from tests.field.conftest import Sealed

Y, X = np.mgrid[0:32, 0:40]
IMAGE = Image.fromarray(np.stack([X * 6, Y * 7, (X + Y) * 3], -1).astype(np.uint8))
# Compressed, a few KB.
FIVE_MEGABYTES = zlib.compress(b"a" * 5_000_000)
EXIFS = {
    "no TIFF": b"Exif\0\0hello world",
    "no header": b"Exif\0\0II",
    "no directory": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "a loop": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\0\0\0\0",
    "an empty resolution": b"Exif\0\0II*\0\x08\0\0\0\x02\0\x1a\x01\x05\0\0\0\0\0\0\0\0\0\x28\x01\x03" + bytes(13),
    "nothing": b"Exif\0\0",
}


def encoded(format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    IMAGE.save(buffer, format_name, **({"lossless": True} if format_name == "WebP" else {}), **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(decode(read_header(data, require_format(data))[0]))


def chunk(name: bytes, content: bytes, crc: int | None = None) -> bytes:
    total = zlib.crc32(name + content) if crc is None else crc
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", total)


CHUNKS = {
    "text with a wrong checksum": chunk(b"tEXt", b"Comment\0text", 1),
    "EXIF with a wrong checksum": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0", 1),
    "frames with a wrong checksum": chunk(b"acTL", b"\xff" * 8, 1),
    "unknown with a wrong checksum": chunk(b"abCd", b"123", 1),
    "2 MB of text": chunk(b"tEXt", b"Comment\0" + b"a" * 2_000_000),
    "5 MB of compressed text": chunk(b"zTXt", b"Comment\0\0" + FIVE_MEGABYTES),
    "5 MB of international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + FIVE_MEGABYTES),
    "80 MB of texts": b"".join(
        chunk(b"zTXt", b"%d\0\0" % number + zlib.compress(b"a" * 1_000_000)) for number in range(80)
    ),
    "5 MB of colour profile": chunk(b"iCCP", b"icc\0\0" + FIVE_MEGABYTES),
    "a profile of unknown compression": chunk(b"iCCP", b"icc\0\7" + FIVE_MEGABYTES),
    "a text of unknown compression": chunk(b"zTXt", b"Comment\0\7" + FIVE_MEGABYTES),
    "a profile without a name": chunk(b"iCCP", b"i"),
    **{
        f"a short {name.decode()}": chunk(name, b"a")
        for name in (b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"tIME", b"eXIf", b"bKGD")
    },
    "an animation out of order": chunk(b"fcTL", b"\0\0\0\5" + bytes(22)),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_of_a_png_that_hold_no_pixels_do_not_matter(name: str, sealed: Sealed) -> None:
    plain, extra = encoded("PNG"), CHUNKS[name]
    for data in (plain[:33] + extra + plain[33:], plain[:-12] + extra + plain[-12:], plain[:-12] + extra[:-5]):
        np.testing.assert_array_equal(decoded(data), np.asarray(IMAGE))
    np.testing.assert_array_equal(sealed(plain[:33] + extra + plain[33:]), sealed(plain))


def test_every_byte_of_a_png_that_holds_pixels_matters() -> None:
    """For each byte of the pixels and of the header changed, the image is refused."""
    for level in (0, 6):
        data = encoded("PNG", compress_level=level)
        start = data.index(b"IDAT") + 4
        length = int.from_bytes(data[start - 8 : start - 4], "big")
        for at in [*range(16, 33), *range(start, start + length, 41), start + length - 1]:
            broken = bytearray(data)
            broken[at] ^= 0x10
            with pytest.raises(UndecodableImage, match="truncated or corrupt"):
                decoded(bytes(broken))


def test_a_png_of_numbers_without_a_palette_is_damaged() -> None:
    buffer = io.BytesIO()
    IMAGE.quantize(16).save(buffer, "PNG")
    data = buffer.getvalue()
    start = data.index(b"PLTE") - 4
    with pytest.raises(UndecodableImage):
        decoded(data[:start] + data[start + 12 + int.from_bytes(data[start : start + 4], "big") :])


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


SEGMENTS = {
    "a short JFIF": (0xE0, b"JFIF\0"),
    "a short Adobe": (0xEE, b"Adobe\0"),
    "a short Photoshop": (0xED, b"Photoshop 3.0\0008BIM"),
    "a Photoshop name that ends": (0xED, b"Photoshop 3.0\0008BIM\4\4\xff"),
    "a colour profile without a number": (0xE2, b"ICC_PROFILE\0"),
    "a colour profile of wrong number": (0xE2, b"ICC_PROFILE\0\1\2xx"),
    "an index of images that ends": (0xE2, b"MPF\0"),
    "an index of images that is noise": (0xE2, b"MPF\0" + b"\xff" * 40),
    "an index of images without entries": (
        0xE2,
        b"MPF\0II*\0\x08\0\0\0\x01\0\x01\xb0\x04\0\x01\0\0\0\2\0\0\0\0\0\0\0",
    ),
    "XMP that is empty": (0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
    "a long comment": (0xFE, b"c" * 65_533),
    **{f"EXIF with {name}": (0xE1, exif) for name, exif in EXIFS.items()},
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments_of_a_jpeg_that_hold_no_pixels_do_not_matter(name: str, sealed: Sealed) -> None:
    plain, extra = encoded("JPEG"), segment(*SEGMENTS[name])
    for data in (plain[:2] + extra + plain[2:], plain[:20] + extra + plain[20:]):
        np.testing.assert_array_equal(decoded(data), decoded(plain))
        np.testing.assert_array_equal(sealed(data), sealed(plain))


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WebP", "AVIF", "TIFF"])
@pytest.mark.parametrize("option", ["icc_profile", "xmp"])
def test_a_large_profile_and_large_xmp_do_not_matter(format_name: str, option: str, sealed: Sealed) -> None:
    length = 60_000 if (format_name, option) == ("JPEG", "xmp") else 1_200_000
    for content in (bytes(length), os.urandom(length)):
        data = encoded(format_name, **{option: content})
        np.testing.assert_array_equal(sealed(data), sealed(encoded(format_name)))


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF"])
def test_what_follows_the_image_does_not_matter(format_name: str, sealed: Sealed) -> None:
    plain = encoded(format_name)
    for rest in (bytes(1000), os.urandom(5000), plain, b"\r\n--boundary--\r\n"):
        np.testing.assert_array_equal(sealed(plain + rest), sealed(plain))


@pytest.mark.parametrize("name", EXIFS)
def test_broken_exif_of_a_webp_does_not_matter(name: str, sealed: Sealed) -> None:
    np.testing.assert_array_equal(sealed(encoded("WebP", exif=EXIFS[name])), sealed(encoded("WebP")))


def test_broken_exif_of_an_avif_does_not_matter(sealed: Sealed) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    data = encoded("AVIF", exif=exif.tobytes())
    start = data.rindex(b"*", 0, data.index(b"maker")) - 3
    assert data[start : start + 4] in (b"MM\0*", b"\0II*")
    for at, value in ((0, b"XXXX"), (4, b"\xff" * 4), (8, b"\xff\xff")):
        broken = data[: start + at] + value + data[start + at + len(value) :]
        np.testing.assert_array_equal(sealed(broken), sealed(encoded("AVIF")))


def test_broken_tags_of_a_tiff_that_hold_no_pixels_do_not_matter(sealed: Sealed) -> None:
    pixels = np.asarray(IMAGE)
    plain = sealed(tiffs.write(pixels, tiffs.Layout()))
    long_type = (4, "I")
    for tag, content in {
        34665: (long_type, [2**31]),  # a directory of EXIF behind the end
        34853: (long_type, [8]),  # a directory of GPS within the pixels
        330: (long_type, [2**31]),  # a sub-directory
        700: ((1, "B"), b"<x:xmpmeta"),
        34675: ((7, "B"), b"\xff" * 1_200_000),
        33723: (long_type, [1, 2, 3]),
        37724: ((7, "B"), os.urandom(1_200_000)),
        34377: ((1, "B"), b"8BIM\xff\xff\xff\xff"),
    }.items():
        np.testing.assert_array_equal(sealed(tiffs.write(pixels, tiffs.Layout(more={tag: content}))), plain)
