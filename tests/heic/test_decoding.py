"""HEIC images become the photograph that they show, upright, within the same limits as others."""

import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve.errors import (
    DecoderDied,
    DecodeTimeout,
    TooComplex,
    TooManyFrames,
    TooManyPixels,
    UndecodableImage,
)
from serve.imaging.decoders import InProcessDecoder
from serve.imaging.formats import ACCEPTED_FORMATS, HEIC, heic_ends_early, sniff_format
from serve.imaging.limits import ImageLimits, require_format
from serve.imaging.pool import DecoderPool
from serve.imaging.preprocess import Preprocessing
from serve.imaging.resize import crop
from tests.heic.pictures import FOLDER, heic_pictures, photograph
from tests.references import PICTURES, pictures
from tests.serve.test_decoders import OPTIONS, RULES, MakePool, deaths_of

SPEC = Preprocessing(64, "bilinear", 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
HERE = replace(RULES, spec=SPEC, exact=True)
# Mean differences in levels of 255: compression makes one of 1 to 3, another orientation one of 20 or more.
MOST, OTHER = 4.0, 20.0


def stored(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def pixels(decoders: DecoderPool | InProcessDecoder, data: bytes) -> np.ndarray:
    crop = decoders.decode(data, require_format(data))
    return np.frombuffer(crop.pixels, np.uint8).reshape(SPEC.crop, SPEC.crop, 3).astype(int)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).mean())


def expected(name: str) -> np.ndarray:
    image = photograph()
    if name.startswith("grey"):
        image = image.convert("L").convert("RGB")
    elif name == "odd_size.heic":
        image = image.crop((0, 0, 127, 63))
    return np.asarray(crop(image, SPEC)).astype(int)


def test_heic_is_accepted_here() -> None:
    assert ACCEPTED_FORMATS[-1] == HEIC
    assert {sniff_format(path.read_bytes()) for path in FOLDER.iterdir()} == {HEIC}
    assert HEIC not in {sniff_format(path.read_bytes()) for path in pictures()}


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("path", heic_pictures(), ids=lambda path: path.name)
def test_every_image_shows_the_photograph_once_turned(pool_with: MakePool, path: Path, upright: bool) -> None:
    """`irot` and `imir` are applied, EXIF's orientation is not: it repeats them, or contradicts the stored pixels."""
    pool = pool_with(replace(OPTIONS, rules=replace(HERE, apply_orientation=upright)))
    found = pixels(pool, path.read_bytes())
    assert difference(found, expected(path.name)) < MOST
    for turn in Image.Transpose:
        turned = np.asarray(crop(photograph().transpose(turn), SPEC)).astype(int)
        assert difference(found, turned) > OTHER


def test_more_than_8_bits_are_scaled_and_not_clipped() -> None:
    decoder = InProcessDecoder(HERE)
    for deep, usual in (("rgb_10_bits", "rgb"), ("grey_10_bits", "grey"), ("rgba_12_bits", "rgba")):
        found, other = (pixels(decoder, stored(f"{name}.heic")) for name in (deep, usual))
        assert difference(found, other) < 2
        assert abs(int(found.max()) - int(other.max())) <= 8
        assert abs(int(found.min()) - int(other.min())) <= 8


@pytest.mark.parametrize("exact", [True, False])
def test_the_pixels_are_those_of_decoding_in_process(pool_with: MakePool, exact: bool) -> None:
    rules = replace(RULES, exact=exact, limits=ImageLimits(50_000_000, 1000, 30.0))
    pool, here = pool_with(replace(OPTIONS, rules=rules)), InProcessDecoder(rules)
    for path in FOLDER.iterdir():
        data = path.read_bytes()
        assert pool.decode(data, HEIC).pixels == here.decode(data, HEIC).pixels, path.name


def with_size(data: bytes, width: int, height: int) -> bytes:
    """The file with another size in its header (`ispe`)."""
    at = data.index(b"ispe") + 8
    return data[:at] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[at + 8 :]


def test_limits_hold_by_the_header_before_anything_is_decoded(pool_with: MakePool) -> None:
    claimed = with_size(stored("plain_4_megapixels.heic"), 40_000, 30_000)
    few = replace(OPTIONS, rules=replace(RULES, limits=ImageLimits(128 * 64 - 1, 1, 1.5)))
    for options, data, error, words in (
        (OPTIONS, claimed, TooManyPixels, "40000 × 30000 pixels; the limit is 50000000 pixels"),
        (few, stored("rgb.heic"), TooManyPixels, "128 × 64 pixels; the limit is 8191 pixels"),
        (few, stored("irot_and_exif_6.heic"), TooManyPixels, "128 × 64 pixels; the limit is 8191 pixels"),  # upright
        (few, stored("second_of_two.heic"), TooManyFrames, "2 frames; the limit is 1 frames"),
    ):
        for decoders in (pool_with(options), InProcessDecoder(options.rules)):
            with pytest.raises(error, match=words):
                decoders.decode(data, HEIC)


def test_a_header_that_understates_the_size_gains_nothing(pool: DecoderPool) -> None:
    data, deaths = with_size(stored("plain_50_megapixels.heic"), 64, 64), deaths_of(pool)
    with suppress(UndecodableImage, TooComplex):
        pool.decode(data, HEIC)
    assert not deaths


def test_large_images_decode_under_the_seal_within_the_default_memory(pool_with: MakePool) -> None:
    pool = pool_with(replace(OPTIONS, rules=replace(RULES, limits=ImageLimits(50_000_000, 1000, 30.0))))
    navy = [0, 0, 128]
    for name in ("plain_4_megapixels.heic", "plain_50_megapixels.heic"):
        found = np.frombuffer(pool.decode(stored(name), HEIC).pixels, np.uint8).reshape(-1, 3)
        assert np.abs(found.astype(int) - navy).max() <= 3


def test_an_image_that_needs_more_memory_than_it_may_have_is_refused_with_the_limit(pool_with: MakePool) -> None:
    pool = pool_with(replace(OPTIONS, memory=28 * 2**20))
    with pytest.raises(TooComplex, match="more memory than the limit, 28 MB"):
        pool.decode(stored("plain_4_megapixels.heic"), HEIC)
    pool.decode(stored("rgb.heic"), HEIC)


def test_an_image_that_takes_too_long_is_refused_with_the_limit(pool_with: MakePool) -> None:
    pool = pool_with(replace(OPTIONS, rules=replace(RULES, limits=ImageLimits(50_000_000, 1000, 0.1))))
    deaths = deaths_of(pool)
    with pytest.raises(DecodeTimeout, match=r"the limit is 0\.1 s\."):
        pool.decode(stored("plain_50_megapixels.heic"), HEIC)
    assert deaths == {"overrun": 1}


@pytest.mark.parametrize("name", ["rgb.heic", "grid.heic"])
def test_a_file_that_ends_early_is_damaged(pool: DecoderPool, name: str) -> None:
    """libheif itself decodes a grid of which tiles are missing."""
    data = stored(name)
    assert not heic_ends_early(data)
    for sixteenth in range(1, 16):
        with pytest.raises(UndecodableImage, match=r"^The HEIC image cannot be decoded: it is truncated or corrupt\.$"):
            pool.decode(data[: len(data) * sixteenth // 16], HEIC)
    with pytest.raises(UndecodableImage):
        pool.decode(data[:-1], HEIC)


def test_what_cameras_append_is_not_taken_for_a_part_that_is_missing(pool: DecoderPool) -> None:
    data = stored("rgb.heic")
    expected = pool.decode(data, HEIC).pixels
    for appended in (b"SEFT\0\0\0\x20", b"\xff" * 40, b"\0" * 16, b"\0\0\0\x10free" + bytes(8), b"\0\0\xff\xffmpvd"):
        assert pool.decode(data + appended, HEIC).pixels == expected


def test_boxes_of_any_length_end_where_they_say() -> None:
    long = b"\0\0\0\x01mdat" + (20).to_bytes(8, "big") + bytes(4)
    assert not heic_ends_early(long)
    assert heic_ends_early(long[:-1])
    assert heic_ends_early(b"\0\0\0\x09meta")
    assert not heic_ends_early(b"\0\0\0\0mdat of the rest")
    assert not heic_ends_early(b"\0\0\0\x07mdat")
    assert not heic_ends_early(b"")


def test_damage_anywhere_is_refused_by_the_contract_or_shown(pool_with: MakePool) -> None:
    pool = pool_with(replace(OPTIONS, rules=HERE))
    numbers = random.Random(18)
    for name in ("rgb.heic", "grid.heic", "irot_and_exif_7.heic", "rgba_12_bits.heic"):
        for _ in range(40):
            data = bytearray(stored(name))
            for _ in range(numbers.choice((1, 4, 30))):
                data[numbers.randrange(24, len(data))] = numbers.randrange(256)
            try:
                pixels(pool, bytes(data))
            except (UndecodableImage, TooManyPixels, TooManyFrames, TooComplex, DecodeTimeout, DecoderDied):
                continue
    assert difference(pixels(pool, stored("rgb.heic")), expected("rgb.heic")) < MOST


def test_other_formats_are_unaffected(pool: DecoderPool) -> None:
    here = InProcessDecoder(RULES)
    for path in sorted(PICTURES.iterdir()):
        data = path.read_bytes()
        assert pool.decode(data, require_format(data)).pixels == here.decode(data, require_format(data)).pixels
