"""The orientation is EXIF's alone, as in browsers; XMP's is not applied, in any format."""

import io
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from serve.imaging.decode import decode, read_header
from serve.imaging.decoders import InProcessDecoder
from serve.imaging.limits import require_format
from tests.field import tiffs
from tests.field.conftest import RULES, Sealed

FORMATS = ("JPEG", "PNG", "WebP", "TIFF", "AVIF")
ORIENTATION = 0x0112
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>',
    "<x:xmpmeta xmlns:x='adobe:ns:meta/'><tiff:Orientation>{}</tiff:Orientation></x:xmpmeta>",
)
TURNED = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE}


def encoded(format_name: str, exif: int | None, xmp: str | None, compression: int = tiffs.UNCOMPRESSED) -> bytes:
    y, x = np.mgrid[0:32, 0:48]
    pixels = np.stack([x * 5, y * 7, x + y], -1)
    if format_name == "TIFF":
        more: dict[int, tiffs.Tag] = {} if exif is None else {ORIENTATION: (tiffs.SHORT, [exif])}
        if xmp is not None:
            more[700] = ((1, "B"), xmp.encode())
        return tiffs.write(pixels, tiffs.Layout(compression=compression, more=more))
    options: dict[str, Any] = {"lossless": True} if format_name == "WebP" else {"quality": 100}
    if exif is not None:
        tags = Image.Exif()
        tags[ORIENTATION] = exif
        options["exif"] = tags.tobytes()
    if xmp is not None:
        options["xmp"] = xmp.encode()
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format_name, **options)
    return buffer.getvalue()


def decoded(data: bytes, apply_orientation: bool = True) -> np.ndarray:
    return np.asarray(decode(read_header(data, require_format(data))[0], apply_orientation)).astype(int)


@pytest.mark.parametrize("xmp", XMP)
@pytest.mark.parametrize("format_name", FORMATS)
def test_an_orientation_in_xmp_alone_is_not_applied(format_name: str, xmp: str, sealed: Sealed) -> None:
    for compression in {tiffs.UNCOMPRESSED, tiffs.LZW if format_name == "TIFF" else tiffs.UNCOMPRESSED}:
        plain = encoded(format_name, None, None, compression)
        for orientation in range(1, 9):
            data = encoded(format_name, None, xmp.format(orientation), compression)
            assert xmp.format(orientation).encode() in data
            np.testing.assert_array_equal(decoded(data), decoded(plain))
            np.testing.assert_array_equal(sealed(data), sealed(plain))


@pytest.mark.parametrize("xmp", [None, *XMP])
@pytest.mark.parametrize("format_name", FORMATS)
def test_the_orientation_of_exif_is_applied_whatever_xmp_says(format_name: str, xmp: str | None) -> None:
    plain = decoded(encoded(format_name, None, None))
    for orientation, turn in TURNED.items():
        expected = plain
        if turn is not None:
            expected = np.asarray(Image.fromarray(plain.astype(np.uint8)).transpose(turn)).astype(int)
        shown = decoded(encoded(format_name, orientation, xmp and xmp.format(8)))
        assert shown.shape == expected.shape
        assert np.abs(shown - expected).max() <= 4  # AVIF is encoded anew


@pytest.mark.parametrize("format_name", FORMATS)
def test_no_orientation_is_applied_if_the_setting_says_so(format_name: str) -> None:
    upright = decoded(encoded(format_name, None, None))
    turned = encoded(format_name, 6, XMP[0].format(6))
    np.testing.assert_array_equal(decoded(turned, apply_orientation=False), upright)
    off = InProcessDecoder(replace(RULES, apply_orientation=False))
    assert off.decode(turned, format_name).pixels == off.decode(encoded(format_name, None, None), format_name).pixels


def test_exif_is_found_behind_the_pixels_and_in_a_text_of_a_png() -> None:
    plain = encoded("PNG", None, None)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    content = exif.tobytes()
    text = f"\nexif\n{len(content):8}\n{content.hex()}\n"
    for name, chunk in (
        (b"eXIf", content.removeprefix(b"Exif\0\0")),
        (b"tEXt", b"Raw profile type exif\0" + text.encode()),
    ):
        framed = struct.pack(">I", len(chunk)) + name + chunk + struct.pack(">I", zlib.crc32(name + chunk))
        for at in (33, len(plain) - 12):
            np.testing.assert_array_equal(decoded(plain[:at] + framed + plain[at:]), np.rot90(decoded(plain), -1))


def test_a_tiff_of_16_bit_grey_is_turned_too() -> None:
    samples = np.arange(32 * 48).reshape(32, 48, 1) * 42
    layout = tiffs.Layout(16, tiffs.BLACK_IS_ZERO)
    upright, turned = (
        decoded(tiffs.write(samples, replace(layout, more={ORIENTATION: (tiffs.SHORT, [orientation])})))
        for orientation in (1, 6)
    )
    np.testing.assert_array_equal(turned, np.rot90(upright, -1))
