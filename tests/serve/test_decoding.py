"""Tests that only large JPEGs are decoded at a reduced scale, which is nearly as exact and much faster."""

import io
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve.config.settings import ROOT
from serve.errors import UndecodableImage
from serve.imaging.decode import Upright, decode, decode_upright, open_image
from serve.imaging.limits import ImageLimits
from serve.imaging.normalise import normalise, to_input
from serve.imaging.preprocess import Preprocessing, resized_size
from serve.imaging.resize import center_crop, crop_bytes, lowest_row
from tests.references import PICTURES

SPEC = Preprocessing(256, "bilinear", 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LIMIT = ImageLimits(50_000_000)
ORIENTATION = 0x0112
# The beginnings of a grey JPEG's frame and of its scan, and the end of every JPEG.
FRAME, SCAN, END = b"\xff\xc0\x00\x0b\x08", b"\xff\xda\x00\x08\x01", b"\xff\xd9"
AFTER = b"more"  # after its end; no row of such a JPEG is left out


@cache  # drawing one takes seconds
def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Draws noise with the 1/f spectrum of photographs, from a fixed seed.

    As in photographs the colours differ less than the brightness does.
    """
    rng = np.random.default_rng(0)
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequencies[0, 0] = 1

    def noise() -> np.ndarray:
        plane = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequencies**1.2, (height, width))
        return plane / plane.std()

    brightness = 128 + 45 * noise()
    planes = [np.clip(brightness + 8 * noise(), 0, 255).astype(np.uint8) for _ in range(len(mode))]
    return Image.merge(mode, [Image.fromarray(plane) for plane in planes])


def jpeg(image: Image.Image, orientation: int = 1, quality: int = 85, **options: Any) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(buffer, "JPEG", quality=quality, exif=exif, **options)
    return buffer.getvalue()


def prepared(data: bytes, reduced: bool) -> np.ndarray:
    """Returns a file as the model's input, resized in one step if `reduced`."""
    return fast(decode_upright(open_image(data, SPEC, LIMIT), reduce_for=SPEC)) if reduced else exact(data)


def exact(data: bytes) -> np.ndarray:
    return to_input(decode(open_image(data, SPEC, LIMIT)), SPEC)


def fast(upright: Upright, spec: Preprocessing = SPEC) -> np.ndarray:
    return normalise(crop_bytes(upright.rgb, upright.size, spec, exact=False, jpeg=False), spec)


def assert_same_rows(upright: Upright, whole: Image.Image, spec: Preprocessing = SPEC) -> None:
    """Checks all rows that the crop is made of; the last row that is decoded may lack colour from below."""
    rows = upright.rgb.height - (upright.rgb.height < whole.height)
    assert rows >= lowest_row(upright.size, spec) or rows == whole.height
    np.testing.assert_array_equal(np.asarray(upright.rgb)[:rows], np.asarray(whole)[:rows])


def assert_decoded_at_full_scale(data: bytes) -> None:
    upright = decode_upright(open_image(data, SPEC, LIMIT), reduce_for=SPEC)
    expected = decode(open_image(data, SPEC, LIMIT))
    assert upright.size == expected.size
    assert_same_rows(upright, expected)


@pytest.mark.parametrize("size", [(1024, 1024), (1031, 1367), (3001, 2251), (5003, 1027)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_reduced_image_is_nearly_the_full_one(size: tuple[int, int], mode: str) -> None:
    data = jpeg(photograph(*size, mode))
    difference = np.abs(prepared(data, reduced=True) - prepared(data, reduced=False))
    assert 0 < difference.mean() < 0.03
    assert difference.max() < 0.3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_image_is_turned_upright_like_any_other(orientation: int) -> None:
    data = jpeg(photograph(1367, 1031), orientation)
    difference = np.abs(prepared(data, reduced=True) - prepared(data, reduced=False))
    assert difference.mean() < 0.03
    assert difference.max() < 0.3


@pytest.mark.parametrize("size", [(1023, 2000), (640, 427), (256, 256), (100, 3000)])
def test_a_jpeg_that_is_not_large_enough_is_the_same_bit_for_bit(size: tuple[int, int]) -> None:
    assert_decoded_at_full_scale(jpeg(photograph(*size)))


@pytest.mark.parametrize("path", sorted(PICTURES.iterdir()), ids=lambda path: path.name)
def test_small_images_of_all_formats_are_the_same_bit_for_bit(path: object) -> None:
    assert_decoded_at_full_scale(path.read_bytes())  # type: ignore[attr-defined]


def test_a_large_image_of_another_format_is_the_same_bit_for_bit() -> None:
    buffer = io.BytesIO()
    photograph(1400, 1100).save(buffer, "PNG")
    assert_decoded_at_full_scale(buffer.getvalue())


@pytest.mark.parametrize("path", sorted(PICTURES.iterdir()), ids=lambda path: path.name)
@pytest.mark.parametrize("sizes", [(256, 224), (32, 28), (224, 224), (237, 224)])
def test_resizing_only_what_the_crop_keeps_is_off_by_one_level_at_most(path: object, sizes: tuple[int, int]) -> None:
    spec = Preprocessing(sizes[0], "bilinear", sizes[1], (0, 0, 0), (1, 1, 1))
    upright = decode_upright(open_image(path.read_bytes(), spec, LIMIT))  # type: ignore[attr-defined]
    levels = np.abs(fast(upright, spec) - to_input(upright.rgb, spec)) * 255
    assert levels.shape == (1, 3, sizes[1], sizes[1])
    assert levels.max() <= 1.001


def test_resizing_only_what_the_crop_keeps_changes_few_values(cat: bytes) -> None:
    upright = decode_upright(open_image(cat, SPEC, LIMIT))
    assert (fast(upright) != to_input(upright.rgb, SPEC)).mean() < 0.05


@pytest.mark.parametrize("size", [(1024, 1024), (1031, 1367), (3001, 2251), (5003, 1027)])
def test_the_crop_of_a_reduced_image_is_that_of_the_whole_one_resized(size: tuple[int, int]) -> None:
    """The last row and column of a reduced image often stand for fewer pixels than the others."""
    upright = decode_upright(open_image(jpeg(photograph(*size)) + AFTER, SPEC, LIMIT), reduce_for=SPEC)
    target, box = resized_size(size, SPEC.resize), (0, 0, *upright.size)
    whole = center_crop(upright.rgb.resize(target, Image.Resampling.BILINEAR, box), SPEC.crop)
    cropped = np.frombuffer(crop_bytes(upright.rgb, upright.size, SPEC, exact=False, jpeg=False), np.uint8)
    assert np.abs(np.asarray(whole).reshape(-1).astype(int) - cropped).max() <= 1


def crops(data: bytes, spec: Preprocessing = SPEC) -> tuple[Upright, bytes, Upright, bytes]:
    """Returns an image without and with the rows below its crop, each with the crop."""
    found: list[Any] = []
    for more in (b"", AFTER):
        upright = decode_upright(open_image(data + more, spec, LIMIT), reduce_for=spec)
        found += [upright, crop_bytes(upright.rgb, upright.size, spec, exact=False, jpeg=False)]
    return tuple(found)


@pytest.mark.parametrize(
    "size",
    [(640, 427), (427, 640), (256, 341), (341, 256), (100, 1000), (90, 100), (2000, 1500), (1027, 3001), (7, 99)],
)
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"subsampling": "4:2:2"}),
        ("RGB", {"subsampling": "4:2:0", "restart_marker_blocks": 3}),
        ("RGB", {"subsampling": "4:2:0", "optimize": True}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_the_crop_is_the_same_without_the_rows_below_it(
    size: tuple[int, int], mode: str, options: dict[str, Any], interpolation: str
) -> None:
    """Except for rounding: Pillow takes the shape of an image into account when it resizes a part of it."""
    spec = replace(SPEC, interpolation=interpolation)
    without, crop, whole, expected = crops(jpeg(photograph(*size, mode), **options), spec)
    assert without.size == whole.size
    assert_same_rows(without, whole.rgb, spec)
    levels = np.abs(np.frombuffer(crop, np.uint8).astype(int) - np.frombuffer(expected, np.uint8))
    assert levels.max() <= (2 if interpolation == "bicubic" else 1)


@pytest.mark.parametrize("size", [(256, 384), (640, 960), (1500, 2000)])
def test_rows_below_the_crop_are_not_decoded(size: tuple[int, int]) -> None:
    without, _, whole, _ = crops(jpeg(photograph(*size)))
    assert without.rgb.height < 0.95 * whole.rgb.height


def in_three_scans(image: Image.Image) -> bytes:
    """Writes an image as a baseline JPEG with a scan for each component, which Pillow does not write."""
    planes = [jpeg(each) for each in image.convert("YCbCr").split()]
    head, _, rest = planes[0].partition(FRAME)
    sides, tables = rest[:4], rest[8:].partition(SCAN)[0]  # between them the number of components, and the only one
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    data = head + b"\xff\xc0\x00\x11\x08" + sides + b"\x03" + components + tables
    for number, plane in enumerate(planes, 1):
        # After the parameters of a scan, five bytes, its data.
        data += SCAN + bytes((number, 0, 0, 63, 0)) + plane.partition(SCAN)[2][5 : -len(END)]
    return data + END


@pytest.mark.parametrize("size", [(427, 640), (1500, 2000)])
def test_rows_below_the_crop_are_left_out_of_several_scans(size: tuple[int, int]) -> None:
    image = photograph(*size)
    without, crop, whole, expected = crops(in_three_scans(image))
    assert without.rgb.height < whole.rgb.height
    assert_same_rows(without, whole.rgb)
    levels = np.abs(np.frombuffer(crop, np.uint8).astype(int) - np.frombuffer(expected, np.uint8))
    assert levels.max() <= 1
    plain = crops(jpeg(image, subsampling="4:4:4"))[1]
    assert np.abs(np.frombuffer(crop, np.uint8).astype(int) - np.frombuffer(plain, np.uint8)).mean() < 2


@pytest.mark.parametrize(("orientation", "options"), [(6, {}), (1, {"progressive": True})])
def test_all_rows_of_a_turned_or_progressive_jpeg_are_decoded(orientation: int, options: dict[str, Any]) -> None:
    without, crop, whole, expected = crops(jpeg(photograph(480, 640), orientation, **options))
    assert without.rgb.size == whole.rgb.size
    assert crop == expected


@pytest.mark.parametrize("size", [(640, 960), (1500, 2000)])
@pytest.mark.parametrize("missing", [1, 2, 3, 100, 0.01, 0.1, 0.5, 0.9])
def test_a_jpeg_that_ends_in_the_rows_below_the_crop_is_undecodable(size: tuple[int, int], missing: float) -> None:
    data = jpeg(photograph(*size))
    cut = data[: -round(missing if missing >= 1 else missing * len(data))]
    for reduce_for in (SPEC, None):
        with pytest.raises(UndecodableImage):
            decode_upright(open_image(cut, SPEC, LIMIT), reduce_for=reduce_for)


def test_all_rows_of_a_jpeg_with_data_after_its_end_are_decoded() -> None:
    _, _, whole, _ = crops(jpeg(photograph(480, 640)))
    assert whole.rgb.size == (480, 640)


def test_a_truncated_large_jpeg_is_undecodable_at_either_scale() -> None:
    data = jpeg(photograph(1400, 1100))[:-20_000]
    for reduced in (True, False):
        with pytest.raises(UndecodableImage, match=r"JPEG .* truncated or corrupt"):
            prepared(data, reduced)


@pytest.mark.parametrize(
    ("size", "decoded"), [((4000, 3000), (1000, 750)), ((2200, 1100), (1100, 550)), ((1023, 4000), (1023, 4000))]
)
def test_a_large_jpeg_is_decoded_to_no_more_pixels_than_it_takes(
    size: tuple[int, int], decoded: tuple[int, int]
) -> None:
    """benchmarks/decoding.py measures what this saves."""
    _, _, whole, _ = crops(jpeg(Image.new("RGB", size)))
    assert whole.rgb.size == decoded


def test_decoding_avif_starts_no_threads() -> None:
    buffer = io.BytesIO()
    photograph(1600, 1200).save(buffer, "AVIF", speed=10)
    code = (
        "import sys, os; from serve.imaging.decode import *; from serve.imaging.limits import *;"
        "from serve.imaging.preprocess import *;"
        "spec = Preprocessing(256, 'bilinear', 224, (0, 0, 0), (1, 1, 1));"
        "decode(open_image(sys.stdin.buffer.read(), spec, ImageLimits(10**8)));"
        "print(len(os.listdir('/proc/self/task')))"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # numpy's own would be counted
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, input=buffer.getvalue(), capture_output=True, check=True)
    assert done.stdout == b"1\n"
