"""Tests of the drawing of a map over an image, and of the PNG writer."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from serve.imaging.normalise import Pixels
from serve.imaging.overlay import color_table, draw_map
from serve.imaging.png import encode_png
from serve.imaging.preprocess import Preprocessing, crop_box, view_size

SPEC = Preprocessing(256, "bilinear", 224, (0, 0, 0), (1, 1, 1))
FIRST, LAST = color_table()[0], color_table()[-1]
# Machado, Oliveira and Fernandes (2009), severity 1, in linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def grey(height: int, width: int, value: int = 100) -> Pixels:
    return np.full((height, width, 3), value, np.uint8)


def lightness(colors: Pixels, seen: object) -> np.ndarray:
    """CIE L* of sRGB colours, as seen with a deficiency."""
    values = colors / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    luminance = (linear @ np.array(seen).T).clip(0, 1) @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27)


@pytest.mark.parametrize("seen", DEFICIENCIES)
def test_the_lightness_of_the_colours_rises_evenly_however_they_are_seen(seen: str) -> None:
    steps = np.diff(lightness(color_table()[::5], DEFICIENCIES[seen]))
    assert steps.min() > 0.2
    assert steps.max() < 2 * steps.mean()


def test_colours_are_mixed_in_the_given_share() -> None:
    places = np.array([[0, 4], [-3, 8]], np.float32)
    drawn = draw_map(grey(2, 2), (2, 2), (0, 0, 2, 2), places, 0.25)
    expected = [[FIRST, color_table()[128]], [FIRST, LAST]]  # 4 of 8 is the middle; what is negative is like nothing
    np.testing.assert_allclose(drawn, 0.75 * 100 + 0.25 * np.array(expected, float), atol=0.5)


def test_an_opacity_of_0_shows_the_image_and_of_1_the_map() -> None:
    places = np.array([[1]], np.float32)
    np.testing.assert_array_equal(draw_map(grey(3, 4), (4, 3), (0, 0, 4, 3), places, 0), grey(3, 4))
    assert (draw_map(grey(3, 4), (4, 3), (0, 0, 4, 3), places, 1) == LAST).all()


@pytest.mark.parametrize("places", [[[0, 0]], [[-5, -1]], [[0, -1e-30]]])
def test_a_map_in_which_nothing_speaks_for_the_class_has_one_colour(places: list[list[float]]) -> None:
    assert (draw_map(grey(2, 2), (2, 2), (0, 0, 2, 2), np.array(places, np.float32), 1) == FIRST).all()


def test_the_map_is_interpolated_between_the_centres_of_its_places() -> None:
    """Two places of four pixels each: the centres lie between pixels 1 and 2, and 5 and 6."""
    drawn = draw_map(grey(1, 8), (8, 1), (0, 0, 8, 1), np.array([[0, 1]], np.float32), 1)
    levels = np.rint(np.array([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]) * 255).astype(int)
    np.testing.assert_array_equal(drawn[0], color_table()[levels])


def test_a_very_long_image_has_at_least_a_pixel_of_the_map() -> None:
    drawn = draw_map(grey(64, 1), (20, 5000), (0, 2490, 20, 2510), np.array([[1]], np.float32), 1)
    assert (drawn == LAST).all(2).sum() == 1


def test_nothing_is_drawn_where_the_model_saw_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=np.uint8)
    drawn = draw_map(image, (200, 80), (60, 10, 140, 70), np.ones((7, 7), np.float32), 1)
    inside = np.zeros((40, 100), bool)
    inside[5:35, 30:70] = True  # the image is drawn at half its size
    assert (drawn[inside] == LAST).all()
    np.testing.assert_array_equal(drawn[~inside], image[~inside])


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((600, 300), (168.75, 18.75, 431.25, 281.25)),  # landscape
        ((300, 600), (18.75, 168.75, 281.25, 431.25)),  # portrait
        ((256, 256), (16, 16, 240, 240)),
        ((1, 1), (0.0625, 0.0625, 0.9375, 0.9375)),
        ((2, 1), (0.5625, 0.0625, 1.4375, 0.9375)),  # tiny
    ],
)
def test_the_crop_is_told_in_pixels_of_the_image(size: tuple[int, int], box: tuple[float, float, float, float]) -> None:
    assert crop_box(size, SPEC) == box


def test_a_view_keeps_its_proportions_and_at_least_a_pixel() -> None:
    sizes = [(600, 300), (300, 600), (1, 1), (4000, 1), (3, 1000)]
    assert [view_size(size, 448) for size in sizes] == [(448, 224), (224, 448), (448, 448), (448, 1), (1, 448)]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (448, 299), (1024, 1024)])
def test_pillow_reads_back_what_was_written(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", size)
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_file_is_a_signature_and_three_chunks_with_their_checksums() -> None:
    data = encode_png(grey(5, 3))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, kinds = 8, []
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(kind + body),)
        kinds.append(kind)
        at += 12 + length
    assert (kinds, at) == ([b"IHDR", b"IDAT", b"IEND"], len(data))


def test_flat_colours_take_little_room() -> None:
    assert len(encode_png(grey(448, 448))) < 448 * 448 * 3 / 100
