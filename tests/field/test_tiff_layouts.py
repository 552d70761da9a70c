"""TIFFs of every layout give the right pixels, or are refused with the reason; never wrong pixels.

The walk goes through sample formats, bits, colours, extra samples, planes, compressions, predictors, order of bits and
bytes, strips and tiles. tifffile, a second decoder, confirms that the files say what they are written to say.
"""

import io
import itertools
import re
import struct
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image

from serve.errors import UndecodableImage, UnsupportedVariety
from serve.imaging.decode import decode, read_header
from tests.field import tiffs
from tests.field.conftest import SIDE, Sealed
from tests.field.tiffs import (
    BLACK_IS_ZERO,
    CMYK,
    DEFLATE,
    FLOAT,
    LAB,
    LZW,
    OLD_DEFLATE,
    PACKBITS,
    PALETTE,
    RGB,
    SHORT,
    SIGNED,
    UNCOMPRESSED,
    UNSIGNED,
    WHITE_IS_ZERO,
    YCBCR,
    Layout,
)

HEIGHT, WIDTH = 32, 41
UNSPECIFIED, PREMULTIPLIED, ALPHA = 0, 1, 2
SAMPLES = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, LAB: 3}
BITS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 24, 32, 64)
EXTRA = ((), (UNSPECIFIED,), (PREMULTIPLIED,), (ALPHA,))
# What is decoded: the bits by colours and extra samples.
DECODED = {
    (WHITE_IS_ZERO, ()): (1, 2, 4, 8, 12, 16),
    (BLACK_IS_ZERO, ()): (1, 2, 4, 8, 12, 16),
    (BLACK_IS_ZERO, (UNSPECIFIED,)): (8,),
    (BLACK_IS_ZERO, (ALPHA,)): (8,),
    (RGB, ()): (8, 16),
    (RGB, (UNSPECIFIED,)): (8, 16),
    (RGB, (PREMULTIPLIED,)): (8, 16),
    (RGB, (ALPHA,)): (8, 16),
    (PALETTE, ()): (1, 2, 4, 8),
    (PALETTE, (UNSPECIFIED,)): (8,),
    (PALETTE, (ALPHA,)): (8,),
    (CMYK, ()): (8, 16),
    (CMYK, (UNSPECIFIED,)): (8,),
}
STORED = tuple(
    {"compression": compression, "predictor": predictor, "order": order, "fill_order": fill_order, "tile": tile}
    for (compression, predictor), order, fill_order, tile in itertools.product(
        ((UNCOMPRESSED, 1), (LZW, 1), (LZW, 2), (DEFLATE, 1), (DEFLATE, 2), (OLD_DEFLATE, 1), (PACKBITS, 1)),
        "<>",
        (1, 2),
        (None, (16, 16)),
    )
)


def picture(bits: int, photometric: int, extra: tuple[int, ...]) -> np.ndarray:
    """Returns samples whose levels are the same at 8, 12 and 16 bits."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [x * 6, y * 7, (x + y) * 3, 255 - x * 5, 200 - y * 4][: SAMPLES[photometric]]
    if extra == (PREMULTIPLIED,):
        planes = [plane * (120 + x * 3) // 255 for plane in planes]
    planes += [120 + x * 3] * len(extra)
    return np.rint(np.stack(planes, -1) * (2**bits - 1) / 255).astype(np.int64)


def palette(bits: int) -> list[int]:
    """Returns all reds, then all greens, then all blues."""
    levels: list[int] = (np.random.default_rng(bits).integers(0, 256, 3 * 2**bits) * 257).tolist()
    return levels


def shown(samples: np.ndarray, layout: Layout) -> np.ndarray:
    """Returns the RGB pixels that a layout's samples stand for, by Pillow's conversion of 8-bit colours."""
    levels = np.rint(samples * 255 / (2**layout.bits - 1)).astype(np.uint8)
    if layout.photometric == PALETTE:
        colours: np.ndarray = (np.array(layout.palette).reshape(3, -1) // 257).astype(np.uint8)
        return colours.T[samples[..., 0]]
    mode = {WHITE_IS_ZERO: "L", BLACK_IS_ZERO: "L", RGB: "RGB", CMYK: "CMYK", YCBCR: "YCbCr"}[layout.photometric]
    if layout.extra == (PREMULTIPLIED,):
        premultiplied = Image.frombytes("RGBa", levels.shape[1::-1], levels.tobytes())
        return np.asarray(premultiplied.convert("RGBA").convert("RGB"))
    levels = np.ascontiguousarray(levels[..., : SAMPLES[layout.photometric]])
    if layout.photometric == WHITE_IS_ZERO:
        levels = 255 - levels
    return np.asarray(Image.frombytes(mode, levels.shape[1::-1], levels.tobytes()).convert("RGB"))


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(decode(read_header(data, "TIFF")[0]))


def told(data: bytes) -> str:
    """Returns why a TIFF is not supported."""
    with pytest.raises(UnsupportedVariety) as refusal:
        decoded(data)
    words = str(refusal.value)
    assert not re.search("truncated|corrupt", words)
    found = re.fullmatch(r"The TIFF image is of a variety that is not supported: (.+)\. Convert it, .*\.", words)
    assert found, words
    return found[1]


def read_by_tifffile(data: bytes, layout: Layout) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        array = file.pages.first.asarray()
    array = array.reshape((-1, HEIGHT, WIDTH) if layout.planar == 2 else (HEIGHT, WIDTH, -1))
    return np.moveaxis(array, 0, -1) if layout.planar == 2 else array


def layouts(photometric: int, extra: tuple[int, ...], bits: int) -> Iterator[Layout]:
    colours = palette(bits) if photometric == PALETTE else []
    for planar, stored in itertools.product((1, 2), STORED):
        if stored["predictor"] == 1 or bits in (8, 16):
            yield Layout(bits, photometric, planar=planar, extra=extra, palette=colours, **stored)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("photometric", "extra", "bits"), [(*key, bits) for key, depths in DECODED.items() for bits in depths]
)
def test_a_decoded_layout_has_the_right_pixels_however_it_is_stored(
    photometric: int, extra: tuple[int, ...], bits: int, sealed: Sealed
) -> None:
    samples = picture(bits, photometric, extra)
    for layout in layouts(photometric, extra, bits):
        data = tiffs.write(samples, layout)
        if layout.compression != LZW and bits in (1, 8, 16):  # tifffile reads others with a further package only
            np.testing.assert_array_equal(read_by_tifffile(data, layout), samples, str(layout))
        expected = shown(samples, layout)
        tolerance = 1 if extra == (PREMULTIPLIED,) or photometric == CMYK else 0
        np.testing.assert_allclose(decoded(data), expected.astype(int), atol=tolerance, err_msg=str(layout))
    left = round((WIDTH - SIDE) / 2)
    np.testing.assert_array_equal(sealed(data), decoded(data)[:, left : left + SIDE])


def test_every_other_layout_is_refused_with_the_reason() -> None:
    reasons: dict[str, set[object]] = {}
    for photometric, bits, extra, planar, order in itertools.product(SAMPLES, BITS, EXTRA, (1, 2), "<>"):
        # Unspecified samples and alpha in planes of their own are left out.
        kept = () if planar == 2 and extra in ((UNSPECIFIED,), (ALPHA,)) else extra
        if bits in DECODED.get((photometric, kept), ()) or (photometric, bits, extra, planar) == (YCBCR, 8, (), 1):
            continue
        samples = np.zeros((HEIGHT, WIDTH, SAMPLES[photometric] + len(extra)), int)
        colours = [0] * 3 * 2 ** min(bits, 12) if photometric == PALETTE else []
        layout = Layout(bits, photometric, order, planar=planar, extra=extra, palette=colours)
        reasons.setdefault(told(tiffs.write(samples, layout)), set()).add((photometric, bits, extra))
    assert set(reasons) == {
        "CIE Lab colours",
        "grey with alpha or other samples at other than 8 bits",
        "grey with premultiplied alpha",
        "more than 16 bits a sample, such as 32-bit pixels",
        "this TIFF layout, a combination of samples, bits and colours",
        "this number of bits a sample (grey may have 1, 2, 4, 8, 12 or 16, colours 8 or 16)",
        "YCbCr colours in separate planes, or of other than three samples",
    }
    assert (BLACK_IS_ZERO, 10, ()) in reasons[next(each for each in reasons if each.startswith("this number"))]
    assert (BLACK_IS_ZERO, 16, (ALPHA,)) in reasons["grey with alpha or other samples at other than 8 bits"]


@pytest.mark.parametrize(
    ("photometric", "bits", "extra"),
    [
        (photometric, bits, extra)
        for photometric, extra in itertools.product(
            (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK),
            ((UNSPECIFIED,), (ALPHA,), (ALPHA, UNSPECIFIED), (UNSPECIFIED, ALPHA)),
        )
        if len(extra) == 1 or photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO)
        for bits in DECODED[photometric, ()]
    ],
)
def test_further_samples_in_planes_of_their_own_are_left_out(
    photometric: int, bits: int, extra: tuple[int, ...]
) -> None:
    samples = picture(bits, photometric, extra)
    for compression, order in itertools.product((UNCOMPRESSED, LZW), "<>"):
        colours = palette(bits) if photometric == PALETTE else []
        layout = Layout(bits, photometric, order, planar=2, compression=compression, extra=extra, palette=colours)
        np.testing.assert_allclose(decoded(tiffs.write(samples, layout)), shown(samples, layout).astype(int), atol=1)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("count", [2, 3])
def test_several_bands_that_are_tagged_as_grey_are_refused(bits: int, planar: int, count: int) -> None:
    """As GDAL writes the bands of a satellite, of which no one is the picture."""
    extra = (UNSPECIFIED,) * count
    layout = Layout(bits, BLACK_IS_ZERO, planar=planar, extra=extra)
    assert told(tiffs.write(picture(bits, BLACK_IS_ZERO, extra), layout)) == "several samples that are tagged as grey"


def test_samples_whose_meaning_no_tag_tells_are_refused_except_of_a_fax() -> None:
    def untagged(data: bytes) -> bytes:
        photometric, other = (struct.pack("<HHI", tag, 3, 1) for tag in (262, 263))
        assert data.count(photometric) == 1
        return data.replace(photometric, other)

    words = "samples without a tag of what they mean (PhotometricInterpretation)"
    for photometric, bits in ((BLACK_IS_ZERO, 8), (WHITE_IS_ZERO, 16), (RGB, 8)):
        assert told(untagged(tiffs.write(picture(bits, photometric, ()), Layout(bits, photometric)))) == words
    buffer, image = io.BytesIO(), Image.radial_gradient("L").convert("1")
    image.save(buffer, "TIFF", compression="group4", tiffinfo={262: 0})
    np.testing.assert_array_equal(decoded(untagged(buffer.getvalue())), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK])
@pytest.mark.parametrize(
    ("sample_format", "bits", "words"),
    [(SIGNED, bits, "signed samples") for bits in (8, 16, 32, 64)]
    + [(FLOAT, bits, "floating-point samples") for bits in (16, 32, 64)]
    + [(4, bits, "samples of an undefined format") for bits in (8, 16)]
    + [(5, 32, "complex samples"), (6, 64, "complex samples")],
)
def test_samples_that_have_no_agreed_black_and_white_are_refused(
    sample_format: int, bits: int, words: str, photometric: int, planar: int
) -> None:
    samples = np.zeros((HEIGHT, WIDTH, SAMPLES[photometric]))
    for compression, order in itertools.product((UNCOMPRESSED, LZW), "<>"):
        stored = UNSIGNED if sample_format > FLOAT else sample_format
        layout = Layout(
            bits, photometric, order, stored, planar, compression, 3 if stored == FLOAT and compression == LZW else 1
        )
        marked = replace(layout, more={339: (SHORT, [sample_format] * samples.shape[2])})
        assert told(tiffs.write(samples, marked)) == words


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [UNCOMPRESSED, LZW, DEFLATE, PACKBITS])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
def test_brightness_and_colour_differences_become_rgb(
    subsampling: tuple[int, int], compression: int, order: str
) -> None:
    across, down = subsampling
    samples = picture(8, YCBCR, ())[:, : WIDTH // 2 * 2]
    samples[..., 1:] = 128 + (samples[..., 1:] - 128) // 3  # so that no colour is out of range
    small = samples[::down, ::across, 1:]
    expected = samples.copy()
    expected[..., 1:] = small.repeat(down, 0).repeat(across, 1)
    # A unit: the brightness of a block, row by row, then its two colour differences (TIFF 6.0, section 21).
    height, width = small.shape[:2]
    blocks = samples[..., 0].reshape(height, down, width, across).transpose(0, 2, 1, 3).reshape(height, width, -1)
    units = np.concatenate([blocks, small], -1).reshape(height, -1, 1)
    more = {
        256: (SHORT, [samples.shape[1]]),
        257: (SHORT, [HEIGHT]),
        258: (SHORT, [8] * 3),
        277: (SHORT, [3]),
        278: (SHORT, [HEIGHT]),
        339: (SHORT, [UNSIGNED] * 3),
        530: (SHORT, subsampling),
    }
    layout = Layout(8, YCBCR, order, compression=compression, rows_per_strip=HEIGHT, more=more)
    difference = np.abs(decoded(tiffs.write(units, layout)) - shown(expected, layout).astype(int))
    assert difference.max() <= 3


@pytest.mark.parametrize("photometric", [BLACK_IS_ZERO, RGB, YCBCR])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_jpeg_compression_is_decoded(photometric: int, tile: tuple[int, int] | None) -> None:
    samples = picture(8, photometric, ())
    layout = Layout(8, photometric, compression=tiffs.JPEG, rows_per_strip=16, tile=tile, more={530: (SHORT, (1, 1))})
    assert np.abs(decoded(tiffs.write(samples, layout)) - shown(samples, layout).astype(int)).mean() < 3


def test_old_style_jpeg_compression_is_decoded() -> None:
    samples = picture(8, RGB, ())
    layout = Layout(8, YCBCR, compression=tiffs.OLD_JPEG, rows_per_strip=HEIGHT)
    assert np.abs(decoded(tiffs.write(samples, layout)) - samples).mean() < 6


def test_thunderscan_compression_is_decoded() -> None:
    samples = picture(4, BLACK_IS_ZERO, ())[:, :40]
    layout = Layout(4, BLACK_IS_ZERO, compression=tiffs.THUNDERSCAN, rows_per_strip=HEIGHT)
    np.testing.assert_array_equal(decoded(tiffs.write(samples, layout)), shown(samples, layout))


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "lzma", "zstd", "tiff_lzw"])
def test_compressions_of_libtiff_are_decoded(compression: str) -> None:
    levels = picture(8, BLACK_IS_ZERO, ())[..., 0].astype(np.uint8)
    mode = "1" if compression in ("group3", "group4", "tiff_ccitt") else "L"
    image, buffer = Image.fromarray(levels).convert(mode), io.BytesIO()
    image.save(buffer, "TIFF", compression=compression)
    np.testing.assert_array_equal(decoded(buffer.getvalue()), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("compression", "words"),
    [
        (9, "JBIG compression"),
        (34661, "JBIG compression"),
        (22610, "JPEG XR compression"),
        (32771, "word-aligned run lengths (CCITT RLEW)"),
        (33003, "JPEG 2000 compression"),
        (33005, "JPEG 2000 compression"),
        (34712, "JPEG 2000 compression"),
        (34676, "SGI's LogLuv compression"),
        (34887, "LERC compression"),
        (34892, "the lossy JPEG compression of DNG"),
        (34933, "PNG compression"),
        (50001, "WebP compression"),
        (50002, "JPEG XL compression"),
        (52546, "JPEG XL compression"),
        (12345, "a compression that the server does not know"),
    ],
)
def test_another_compression_is_named(compression: int, words: str) -> None:
    layout = Layout(8, RGB, more={259: (SHORT, [compression])})
    assert told(tiffs.write(picture(8, RGB, ()), layout)) == words


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({262: (SHORT, [BLACK_IS_ZERO])}, "several samples that are tagged as grey"),
        ({262: (SHORT, [WHITE_IS_ZERO])}, "several samples that are tagged as grey"),
        ({262: (SHORT, [6]), 530: (SHORT, [1, 4])}, "YCbCr colours with a subsampling of 1 × 4 or 2 × 4"),
        ({262: (SHORT, [6]), 530: (SHORT, [2, 4])}, "YCbCr colours with a subsampling of 1 × 4 or 2 × 4"),
        ({262: (SHORT, [4])}, "a transparency mask in place of a picture"),
        ({262: (SHORT, [9])}, "CIE Lab colours"),
        ({262: (SHORT, [32803])}, "raw data of a camera's sensor"),
        ({262: (SHORT, [34892])}, "raw data of a camera's sensor"),
        ({262: (SHORT, [32844])}, "logarithmic brightness (LogL, LogLuv)"),
        ({262: (SHORT, [77])}, "a colour space that the server does not know"),
        ({258: (SHORT, [5, 6, 5])}, "samples of different depths"),
        ({258: (SHORT, [16] * 3), 259: (SHORT, [7])}, "JPEG compression of other than 8 bits a sample"),
        ({258: (SHORT, [8] * 7), 277: (SHORT, [7]), 338: (SHORT, [0] * 4)}, "more samples a pixel than six"),
        (
            {258: (SHORT, [8] * 4), 262: (SHORT, [CMYK]), 277: (SHORT, [4]), 332: (SHORT, [2])},
            "inks other than CMYK",
        ),
    ],
)
def test_another_kind_of_samples_is_named(more: dict[int, tiffs.Tag], words: str) -> None:
    for compression in (UNCOMPRESSED, LZW):
        tags = {259: (SHORT, [compression]), **more}
        assert told(tiffs.write(picture(8, RGB, ()), Layout(8, RGB, more=tags))) == words


def test_bigtiff_is_read_in_little_endian_order_and_refused_in_big_endian_order() -> None:
    samples = picture(8, RGB, ())
    for bits, compression in itertools.product((8, 16), (UNCOMPRESSED, LZW)):
        layout = Layout(bits, RGB, big=True, compression=compression)
        expected = shown(samples, Layout(8, RGB))
        np.testing.assert_array_equal(decoded(tiffs.write(picture(bits, RGB, ()), layout)), expected)
        data = tiffs.write(samples, replace(layout, order=">"))
        assert told(data) == "BigTIFF in big-endian byte order"


def test_a_palette_of_8_bit_colours_is_not_shown_nearly_black() -> None:
    samples, layout = picture(8, PALETTE, ()), Layout(8, PALETTE, palette=palette(8))
    old = replace(layout, palette=[level // 257 for level in palette(8)])
    np.testing.assert_array_equal(decoded(tiffs.write(samples, old)), shown(samples, layout))


def test_only_the_first_page_and_no_sub_directory_is_shown() -> None:
    samples = picture(8, RGB, ()).astype(np.uint8)
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(samples, photometric="rgb", subifds=1)
        writer.write(255 - samples, photometric="rgb", subfiletype=1)
        writer.write(255 - samples, photometric="rgb")
    np.testing.assert_array_equal(decoded(buffer.getvalue()), samples)


@pytest.mark.parametrize("compression", [UNCOMPRESSED, LZW])
def test_missing_strips_are_damage_and_not_black(compression: int) -> None:
    layout = Layout(8, RGB, compression=compression)
    data = tiffs.write(picture(8, RGB, ()), layout)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages.first.tags
        fewer = {tag: ((4, "I"), tags[tag].value[:-2]) for tag in (273, 279)}
    with pytest.raises(UndecodableImage, match="truncated or corrupt"):
        decoded(tiffs.write(picture(8, RGB, ()), replace(layout, more=fewer)))
