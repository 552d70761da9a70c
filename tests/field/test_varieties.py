"""JPEGs, PNGs and AVIFs of unusual varieties are decoded rightly, or refused by the variety's name."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from serve.errors import UndecodableImage, UnsupportedVariety
from serve.imaging.decode import decode, read_header
from serve.imaging.decoders import InProcessDecoder
from serve.imaging.formats import sniff_format
from serve.imaging.limits import require_format
from serve.imaging.messages import Code, Reply, Rules
from serve.imaging.preprocess import Preprocessing
from serve.imaging.varieties import VARIETIES, unsupported
from tests.field import tiffs
from tests.field.conftest import RULES, Sealed
from tests.references import PICTURES, pictures

DATA = Path(__file__).parent / "data"
Y, X = np.mgrid[0:32, 0:40]
# What the files in DATA show.
COLOURS = np.stack([X * 6, Y * 7, (X + Y) * 3], -1)


def jpeg(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(COLOURS.astype(np.uint8)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def with_frame(marker: int | None = None, at: int = 0, value: bytes = b"") -> bytes:
    """Returns a JPEG whose frame has another marker, or other bytes at a place behind the marker."""
    data = bytearray(jpeg())
    start = data.index(b"\xff\xc0")
    if marker is not None:
        data[start + 1] = marker
    data[start + at : start + at + len(value)] = value or data[start + at : start + at]
    return bytes(data)


# Number of lines (DNL, ITU-T T.81, B.2.5), then the end.
LATE_HEIGHT = b"\xff\xdc\0\4\0\x28\xff\xd9"


def png(*before: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(COLOURS.astype(np.uint8)).save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:8] + b"".join(before) + data[8:]


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(decode(read_header(data, require_format(data))[0])).astype(int)


@pytest.mark.parametrize("name", ["arithmetic", "arithmetic_progressive"])
def test_arithmetic_coding_is_decoded_beyond_64_kilobytes(name: str) -> None:
    """Pillow hands a file over in pieces of 64 KiB, and the decoder of arithmetic coding cannot wait for the next."""
    data = (DATA / f"{name}.jpg").read_bytes()
    middle_of_scan = (data.index(b"\xff\xda") + len(data)) // 2
    length = 2**16 - middle_of_scan - 2  # of a comment
    padded = data[:2] + b"\xff\xfe" + struct.pack(">H", length) + bytes(length - 2) + data[2:]
    np.testing.assert_array_equal(decoded(padded), decoded(data))


def test_a_height_of_nothing_is_damage_and_a_marker_without_a_length_is_none() -> None:
    with pytest.raises(UndecodableImage):
        decoded(with_frame(None, 5, b"\0\0"))
    data = jpeg()
    np.testing.assert_array_equal(decoded(data[:2] + b"\xff\x01" + data[2:]), decoded(data))


@pytest.mark.parametrize("name", ["arithmetic", "arithmetic_progressive"])
def test_arithmetic_coding_has_the_pixels_of_huffman_coding(name: str, sealed: Sealed) -> None:
    data, twin = ((DATA / f"{each}.jpg").read_bytes() for each in (name, "huffman"))
    np.testing.assert_array_equal(decoded(data), decoded(twin))
    np.testing.assert_array_equal(sealed(data), sealed(twin))


def test_lossless_jpeg_of_8_bits_is_exact() -> None:
    np.testing.assert_array_equal(decoded((DATA / "lossless_rgb.jpg").read_bytes()), COLOURS)
    np.testing.assert_array_equal(decoded((DATA / "lossless_grey.jpg").read_bytes())[..., 0], COLOURS[..., 2])


def test_lossless_jpeg_is_not_decoded_at_a_reduced_scale() -> None:
    """A regression: libjpeg has no reduced scale for it, and fails."""
    data = (DATA / "lossless_rgb.jpg").read_bytes()
    spec = Preprocessing(2, "bilinear", 2, (0, 0, 0), (1, 1, 1))
    exact, quick = (
        InProcessDecoder(Rules(spec, RULES.limits, exact=exact)).decode(data, "JPEG") for exact in (True, False)
    )
    difference = np.frombuffer(exact.pixels, np.uint8).astype(int) - np.frombuffer(quick.pixels, np.uint8)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("bits", [10, 12])
def test_avif_of_more_than_8_bits_is_decoded(bits: int, sealed: Sealed) -> None:
    data = (DATA / f"{bits}_bit.avif").read_bytes()
    assert np.abs(decoded(data) - COLOURS).mean() < 1
    assert sealed(data).std() > 10


@pytest.mark.parametrize("brand", [b"mif1", b"miaf", b"MA1B", b"xxxx"])
def test_avif_is_known_by_any_of_its_brands(brand: bytes, sealed: Sealed) -> None:
    data = (DATA / "10_bit.avif").read_bytes()
    assert data[8:12] == b"avif"
    other = data[:8] + brand + data[12:]
    assert b"avif" in other[16:32]
    np.testing.assert_array_equal(sealed(other), sealed(data))


NAMED = {
    "12 bits": ((DATA / "12_bit.jpg").read_bytes(), "JPEG", "12 bits a sample"),
    "12 bits, grey": ((DATA / "12_bit_grey.jpg").read_bytes(), "JPEG", "12 bits a sample"),
    "progressive, 12 bits": (with_frame(0xC2, 4, b"\x0c"), "JPEG", "12 bits a sample"),
    "lossless, 16 bits": ((DATA / "lossless_16_bit.jpg").read_bytes(), "JPEG", "lossless JPEG of other than 8 bits"),
    "lossless, arithmetic": (with_frame(0xCB), "JPEG", "lossless JPEG of other than 8 bits"),
    "JPEG-LS": ((DATA / "jpeg_ls.jpg").read_bytes(), "JPEG", "JPEG-LS"),
    "two components": ((DATA / "two_components.jpg").read_bytes(), "JPEG", "two components"),
    "height behind the pixels": (
        with_frame(None, 5, b"\0\0")[:-2] + LATE_HEIGHT,
        "JPEG",
        "a height that follows the pixels (DNL)",
    ),
    "sampling 3 : 2": (with_frame(None, 11, b"\x31\0\x02\x21"), "JPEG", "components whose sizes are not multiples"),
    **{
        f"hierarchical, {marker:X}": (with_frame(marker), "JPEG", "hierarchical JPEG")
        for marker in (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE)
    },
    "CgBI": (png(chunk(b"CgBI", b"\x50\0\x20\x02")), "PNG", "Apple's CgBI"),
    "critical chunk": (png(chunk(b"NEWc", b"")), "PNG", "a critical chunk that the standard does not have"),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_variety_that_is_not_decoded_is_named(name: str, sealed: Sealed) -> None:
    data, format_name, words = NAMED[name]
    with pytest.raises(UnsupportedVariety) as refusal:
        sealed(data)
    told = str(refusal.value)
    assert told.startswith(f"The {format_name} image is of a variety that is not supported: {words}")
    with pytest.raises(UnsupportedVariety, match=re.escape(told)):
        decoded(data)


def test_a_damaged_jpeg_of_an_unusual_variety_is_damaged() -> None:
    for name in ("arithmetic", "lossless_rgb"):
        data = (DATA / f"{name}.jpg").read_bytes()
        with pytest.raises(UndecodableImage, match="truncated or corrupt"):
            decoded(data[: len(data) // 2])


TIFFS = {
    "strips.tiff": tiffs.write(COLOURS, tiffs.Layout()),
    "planes.tiff": tiffs.write(COLOURS * 257, tiffs.Layout(16, planar=2)),
    "tiles.tiff": tiffs.write(COLOURS, tiffs.Layout(order=">", compression=tiffs.LZW, tile=(16, 16))),
    "big.tiff": tiffs.write(COLOURS, tiffs.Layout(big=True)),
}


@pytest.mark.parametrize("name", [*TIFFS, *(path.name for path in pictures())])
def test_a_truncated_image_is_never_called_a_variety(name: str) -> None:
    data = TIFFS.get(name) or (PICTURES / name).read_bytes()
    damaged = 0
    for kept in [*range(12, len(data), len(data) // 40 + 1), *range(len(data) - 200, len(data), 7)]:
        if (format_name := sniff_format(data[: max(kept, 12)])) is not None:
            try:
                decode(read_header(data[:kept], format_name)[0])
            except UndecodableImage:
                damaged += 1
    assert damaged > 5


def test_the_words_of_no_variety_speak_of_damage() -> None:
    for variety in VARIETIES:
        words = str(unsupported(variety))
        assert re.fullmatch(
            r"The (JPEG|PNG|BMP|TIFF) image is of a variety that is not supported: [^.]+\. Convert .*", words
        )
        assert not re.search("truncated|corrupt|damaged", words)


def test_a_reply_with_an_unknown_variety_is_invalid() -> None:
    last = Reply(Code.UNSUPPORTED, variety=len(VARIETIES) - 1)
    assert Reply.unpack(last.pack()) == last
    with pytest.raises(ValueError, match=f"there is no variety {len(VARIETIES)}"):
        Reply.unpack(last._replace(variety=len(VARIETIES)).pack())


def test_the_answer_is_422_that_names_the_variety(client: TestClient) -> None:
    floats = tiffs.write(np.zeros((32, 32, 3)), tiffs.Layout(32, tiffs.RGB, sample_format=tiffs.FLOAT))
    for data, words in ((NAMED["12 bits"][0], "12 bits a sample"), (floats, "floating-point samples")):
        answer = client.post("/upload", files={"file": data})
        assert (answer.status_code, answer.json()["title"]) == (422, "Unprocessable Content")
        assert words in answer.json()["detail"]
        assert not re.search("truncated|corrupt", answer.json()["detail"])
    assert 'serve_rejected_total{reason="unsupported_variety"} 2.0' in client.get("/metrics").text
