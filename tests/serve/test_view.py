"""Tests of the view, the whole upright image that a decoder returns beside the model's crop."""

import io
import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from serve.errors import DecoderDied
from serve.imaging.decoders import Crop, InProcessDecoder
from serve.imaging.fork_server import ForkServer
from serve.imaging.limits import ImageLimits, require_format
from serve.imaging.messages import MAX_VIEW, VIEW_BYTES, Reply, Request, Rules
from serve.imaging.pool import DecoderPool, PoolOptions
from serve.imaging.preprocess import Preprocessing, view_size
from tests.hostile.takeover import MARK
from tests.references import PICTURES
from tests.serve.conftest import PHOTOS

SPEC = Preprocessing(256, "bilinear", 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RULES = Rules(SPEC, ImageLimits(50_000_000, 1000, 1.5))
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer("tests.hostile.takeover:act")
    yield server
    server.close()


@pytest.fixture(scope="module")
def pool(fork_server: ForkServer) -> Iterator[DecoderPool]:
    made = DecoderPool(fork_server, PoolOptions(RULES, 20 * 2**20))
    yield made
    made.close()


def view_of(crop: Crop, side: int) -> np.ndarray:
    width, height = view_size(crop.size, side)
    return np.frombuffer(crop.view, np.uint8).reshape(height, width, 3)


def corners(orientation: int = 1, size: tuple[int, int] = (600, 400)) -> bytes:
    """A picture whose stored top left quarter is red and whose bottom right quarter is green."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[: size[1] // 2, : size[0] // 2, 0] = 255
    pixels[size[1] // 2 :, size[0] // 2 :, 1] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, exif=exif.tobytes())
    return buffer.getvalue()


@pytest.mark.parametrize("exact", [True, False])
def test_a_view_changes_nothing_about_the_crop(fork_server: ForkServer, exact: bool) -> None:
    rules = replace(RULES, exact=exact)
    pool, here = DecoderPool(fork_server, PoolOptions(rules, 20 * 2**20)), InProcessDecoder(rules)
    paths = [*sorted(PHOTOS.glob("*.jpg")), *sorted(each for each in PICTURES.iterdir() if each.suffix != ".json")]
    assert len(paths) > 30
    files = {path.name: path.read_bytes() for path in paths}
    with Image.open(PHOTOS / "rocket.jpg") as photo:
        for size in ((427, 640), (1500, 2000)):
            buffer = io.BytesIO()
            photo.resize(size).save(buffer, "JPEG")
            files[f"{size}"] = buffer.getvalue()
    for name, data in files.items():
        format_name = require_format(data)
        without, crop, other = (
            decoders.decode(data, format_name, view) for decoders, view in ((pool, 0), (pool, 448), (here, 448))
        )
        assert without.pixels == crop.pixels == other.pixels, name
        assert (without.view, without.size) == (b"", crop.size), name
        assert (crop.view, crop.size) == (other.view, other.size), name
        assert max(view_of(crop, 448).shape) == 448, name
    pool.close()


@pytest.mark.parametrize("size", [(600, 400), (2400, 1600)])  # the larger one is decoded at a reduced scale
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_view_is_upright_whatever_the_orientation(pool: DecoderPool, orientation: int, size: tuple[int, int]) -> None:
    crop = pool.decode(corners(orientation, size), "JPEG", 300)
    turned = orientation > 4
    assert crop.size == (size[::-1] if turned else size)
    view = view_of(crop, 300)
    assert view.shape == ((300, 200, 3) if turned else (200, 300, 3))
    near, far = slice(5, 60), slice(-60, -5)
    quarters = [view[rows, columns].mean((0, 1)) for rows in (near, far) for columns in (near, far)]
    red = [quarter[0] > 200 for quarter in quarters].index(True)
    green = [quarter[1] > 200 for quarter in quarters].index(True)
    expected = {1: (0, 3), 2: (1, 2), 3: (3, 0), 4: (2, 1), 5: (0, 3), 6: (1, 2), 7: (3, 0), 8: (2, 1)}
    assert (red, green) == expected[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_has_its_upright_size_and_view(pool: DecoderPool, orientation: int) -> None:
    stored, buffer = Image.open(PHOTOS / "cat.jpg"), io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored.save(buffer, "TIFF", exif=exif)
    crop = pool.decode(buffer.getvalue(), "TIFF", 300)
    assert crop.size == (stored.size[::-1] if orientation > 4 else stored.size)
    jpeg = io.BytesIO()
    stored.save(jpeg, "JPEG", exif=exif, quality=95)
    expected = view_of(pool.decode(jpeg.getvalue(), "JPEG", 300), 300)
    assert np.abs(view_of(crop, 300).astype(int) - expected).mean() < 3


def test_an_orientation_that_is_not_applied_turns_neither_view_nor_size(fork_server: ForkServer) -> None:
    for decoders in (
        DecoderPool(fork_server, PoolOptions(replace(RULES, apply_orientation=False), 20 * 2**20)),
        InProcessDecoder(replace(RULES, apply_orientation=False)),
    ):
        crop = decoders.decode(corners(6), "JPEG", 300)
        assert crop.size == (600, 400)
        assert view_of(crop, 300)[20, 20, 0] > 200
        decoders.close()


def test_a_view_is_the_image_resized(pool: DecoderPool) -> None:
    data = (PHOTOS / "cat.jpg").read_bytes()
    crop = pool.decode(data, "JPEG", 200)
    with Image.open(io.BytesIO(data)) as image:
        expected = image.convert("RGB").resize(view_size(image.size, 200), Image.Resampling.BILINEAR)
    difference = np.abs(view_of(crop, 200).astype(int) - np.asarray(expected))
    assert difference.mean() < 1.5


def test_the_largest_view_fits_beside_a_limit_on_bytes_that_is_smaller(fork_server: ForkServer) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 300), (9, 8, 7)).save(buffer, "PNG")
    pool = DecoderPool(fork_server, PoolOptions(RULES, len(buffer.getvalue())))
    crop = pool.decode(buffer.getvalue(), "PNG", MAX_VIEW)
    assert len(crop.view) == VIEW_BYTES
    assert (view_of(crop, MAX_VIEW) == (9, 8, 7)).all()
    pool.close()


def test_no_view_is_left_in_the_memory(fork_server: ForkServer) -> None:
    pool = DecoderPool(fork_server, PoolOptions(RULES, 20 * 2**20))
    for side in (64, 448, MAX_VIEW):
        pool.decode((PHOTOS / "cat.jpg").read_bytes(), "JPEG", side)
        (decoder,) = pool._used
        assert not any(os.pread(decoder._memory, 8 * 2**20, 0))
    pool.close()


@pytest.mark.parametrize("name", ["a crop without a size", "a reply of no known code", "a second report"])
def test_a_decoder_that_was_taken_over_gets_no_view_through(pool: DecoderPool, name: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 280)).save(buffer, "BMP")
    with pytest.raises(DecoderDied):
        pool.decode(buffer.getvalue() + MARK + name.encode(), "BMP", 448)


def test_messages_keep_the_view_and_whether_the_image_is_turned() -> None:
    request = Request("JPEG", 9, RULES, 4, 448)
    assert Request.unpack(request.pack()).view == 448
    reply = Reply(2, 30, 20, 1, turned=True)
    assert Reply.unpack(reply.pack()).upright_size == (20, 30)
