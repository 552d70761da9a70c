"""BMPs of every depth, palette and compression give the right pixels, or are refused with the reason."""

import numpy as np
import pytest

from serve.errors import UndecodableImage, UnsupportedVariety
from serve.imaging.decode import decode, read_header
from tests.field import bitmaps
from tests.field.bitmaps import BIT_FIELDS, CORE, INFO, OS2, RLE4, RLE8, V4, V5

Y, X = np.mgrid[0:32, 0:40]
GREYS_OF_16 = [(level, level, level) for level in range(16)]
BLACK_AND_WHITE = [(0, 0, 0), (255, 255, 255)]
COLOURS = [tuple(int(part) for part in colour) for colour in np.random.default_rng(0).integers(0, 256, (256, 3))]

OTHER_COMPRESSION = "a compression other than run lengths of 4 or 8 bits"
OTHER_BIT_FIELDS = "bit fields other than the usual ones, such as 10 bits a colour"
OTHER_DEPTH = "a depth other than 1, 4, 8, 16, 24 and 32 bits"


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(decode(read_header(data, "BMP")[0]))


def reason(data: bytes) -> str:
    with pytest.raises(UnsupportedVariety) as refusal:
        decoded(data)
    return str(refusal.value).removeprefix("The BMP image is of a variety that is not supported: ").split(". ")[0]


@pytest.mark.parametrize("header", [CORE, INFO, OS2, V4, V5])
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("palette", [COLOURS, GREYS_OF_16, BLACK_AND_WHITE, BLACK_AND_WHITE[::-1]])
def test_a_palette_is_used_whatever_its_colours_and_the_depth(
    header: int, bits: int, palette: list[tuple[int, int, int]]
) -> None:
    colours = palette[: 2**bits]
    if header == CORE:  # which does not tell the number of colours
        colours = (colours * 2**bits)[: 2**bits]
    pixels = (X + Y) % len(colours)
    for top_down in {False, header != CORE}:
        data = bitmaps.write(pixels, bits, header=header, palette=colours, top_down=top_down)
        np.testing.assert_array_equal(decoded(data), np.array(colours)[pixels])


@pytest.mark.parametrize("palette", [COLOURS, GREYS_OF_16, BLACK_AND_WHITE])
@pytest.mark.parametrize(("bits", "compression"), [(8, RLE8), (4, RLE4)])
def test_run_lengths_are_decoded(bits: int, compression: int, palette: list[tuple[int, int, int]]) -> None:
    colours = palette[: 2**bits]
    pixels = (X // 8 + Y) % len(colours)
    rows = []
    for row in pixels[::-1]:
        runs = [(8, int(row[start])) for start in range(0, 40, 8)]
        rows.append(b"".join(bytes([length, number * (17 if bits == 4 else 1)]) for length, number in runs) + b"\0\0")
    data = bitmaps.write(b"".join(rows) + b"\0\1", bits, compression=compression, palette=colours)
    np.testing.assert_array_equal(decoded(data), np.array(colours)[pixels])


@pytest.mark.parametrize(
    ("bits", "masks", "header"),
    [
        (16, (), INFO),
        (16, (0x7C00, 0x3E0, 0x1F), INFO),
        (16, (0xF800, 0x7E0, 0x1F), INFO),
        (16, (0xF800, 0x7E0, 0x1F), V5),
        (24, (), CORE),
        (24, (), INFO),
        (32, (), INFO),
        (32, (0xFF0000, 0xFF00, 0xFF), INFO),
        (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000), V4),
        (32, (0xFF000000, 0xFF0000, 0xFF00), V4),
        (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), V5),
    ],
)
def test_colours_are_found_by_their_bits(bits: int, masks: tuple[int, ...], header: int) -> None:
    usual = (0x7C00, 0x3E0, 0x1F) if bits == 16 else (0xFF0000, 0xFF00, 0xFF)
    colours = np.stack([X * 6, Y * 7, (X + Y) * 3], -1)
    pixels, expected = np.zeros(X.shape, np.uint64), np.zeros((*X.shape, 3))
    for index, mask in enumerate((masks or usual)[:3]):
        shift, most = (mask & -mask).bit_length() - 1, mask >> ((mask & -mask).bit_length() - 1)
        values = colours[..., index] * most // 255
        pixels |= values.astype(np.uint64) << np.uint64(shift)
        expected[..., index] = values * 255 / most
    data = bitmaps.write(pixels, bits, header=header, compression=BIT_FIELDS if masks else 0, masks=masks)
    assert np.abs(decoded(data) - expected).max() <= 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bitmaps.write(bytes(9000), 24, compression=4), "JPEG data"),
        (bitmaps.write(bytes(9000), 0, header=V5, compression=4), "JPEG data"),
        (bitmaps.write(bytes(9000), 0, header=V5, compression=5), "PNG data"),
        (bitmaps.write(bytes(9000), 32, compression=6), OTHER_COMPRESSION),
        (bitmaps.write(bytes(9000), 32, compression=11), OTHER_COMPRESSION),
        (bitmaps.write(bytes(9000), 1, header=OS2, compression=3), OTHER_COMPRESSION),  # Huffman
        (bitmaps.write(bytes(9000), 24, header=OS2, compression=4), OTHER_COMPRESSION),  # run lengths of 24 bits
        (bitmaps.write(bytes(9000), 2, palette=GREYS_OF_16[:4]), OTHER_DEPTH),
        (bitmaps.write(bytes(20000), 64), OTHER_DEPTH),
        (bitmaps.write(bytes(9000), 32, compression=3, masks=(0x3FF00000, 0xFFC00, 0x3FF)), OTHER_BIT_FIELDS),
        (bitmaps.write(bytes(9000), 16, header=V4, compression=3, masks=(0xF00, 0xF0, 0xF, 0xF000)), OTHER_BIT_FIELDS),
        (bitmaps.write(bytes(9000), 24, header=16), "the short header of OS/2"),
    ],
)
def test_another_variety_is_named(data: bytes, words: str) -> None:
    assert reason(data) == words


@pytest.mark.parametrize("bits", [8, 24])
@pytest.mark.parametrize("kept", [20, 40, 60, 800])
def test_a_truncated_bitmap_is_damaged(bits: int, kept: int) -> None:
    data = bitmaps.write(X, bits, palette=COLOURS if bits == 8 else ())
    with pytest.raises(UndecodableImage, match="truncated or corrupt"):
        decoded(data[:kept])
