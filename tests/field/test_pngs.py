"""PNGs of every colour type, depth and interlacing give the right pixels."""

import struct
import zlib

import numpy as np
import pytest

from serve.imaging.decode import decode, read_header
from tests.field.conftest import SIDE, Sealed

HEIGHT, WIDTH = 32, 37
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]
LEVELS = np.stack([X * 6, Y * 8, (X + Y) * 3, 255 - X * 3], -1)
COLOURS = np.random.default_rng(0).integers(0, 256, (256, 3))
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
# The first column and row of each pass of Adam7, and the steps to the next (PNG, section 8.2).
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def rows(samples: np.ndarray, depth: int) -> bytes:
    """Packs rows, each after the number of its filter, 0."""
    flat = samples.reshape(len(samples), -1)
    bits = (flat[..., None] >> np.arange(depth - 1, -1, -1) & 1).astype(np.uint8)
    packed = np.packbits(bits.reshape(len(samples), -1), axis=1)
    return np.pad(packed, [(0, 0), (1, 0)]).tobytes()


def png(samples: np.ndarray, depth: int, kind: int, interlaced: bool, transparent: bool) -> bytes:
    passes = PASSES if interlaced else ((0, 0, 1, 1),)
    content = b"".join(rows(samples[top::down, left::across], depth) for left, top, across, down in passes)
    before = chunk(b"PLTE", COLOURS[: 2**depth].astype(np.uint8).tobytes()) if kind == PALETTE else b""
    if transparent and kind in (GREY, RGB, PALETTE):
        before += chunk(b"tRNS", {GREY: b"\0\1", RGB: b"\0\1\0\2\0\3", PALETTE: b"\0\x80"}[kind])
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, kind, 0, 0, interlaced)
    pixels = chunk(b"IDAT", zlib.compress(content))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("kind", "depth"), [(kind, depth) for kind, depths in DEPTHS.items() for depth in depths])
def test_a_png_has_the_right_pixels(kind: int, depth: int, interlaced: bool, transparent: bool, sealed: Sealed) -> None:
    most = 2**depth - 1
    if kind == PALETTE:
        samples = (X + Y)[..., None] % (most + 1)
        expected = COLOURS[samples[..., 0]]
    else:
        levels = {GREY: LEVELS[..., :1], RGB: LEVELS[..., :3], GREY_ALPHA: LEVELS[..., [0, 3]]}.get(kind, LEVELS)
        samples = np.rint(levels * most / 255).astype(int)
        shown = np.rint(samples * 255 / most)[..., : 1 if kind in (GREY, GREY_ALPHA) else 3]
        expected = np.broadcast_to(shown, (HEIGHT, WIDTH, 3))
    data = png(samples, depth, kind, interlaced, transparent)
    decoded = np.asarray(decode(read_header(data, "PNG")[0]))
    np.testing.assert_array_equal(decoded, expected)
    left = round((WIDTH - SIDE) / 2)
    np.testing.assert_array_equal(sealed(data), decoded[:, left : left + SIDE])
