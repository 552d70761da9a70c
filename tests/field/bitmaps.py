"""Writes BMPs of any header, depth, compression and palette."""

import struct
from collections.abc import Sequence

import numpy as np

CORE, INFO, OS2, V4, V5 = 12, 40, 64, 108, 124
UNCOMPRESSED, RLE8, RLE4, BIT_FIELDS, JPEG, PNG = range(6)


def write(
    pixels: np.ndarray | bytes,
    bits: int,
    *,
    size: tuple[int, int] = (40, 32),
    header: int = INFO,
    compression: int = UNCOMPRESSED,
    palette: Sequence[Sequence[int]] = (),
    masks: Sequence[int] = (),
    top_down: bool = False,
) -> bytes:
    """Returns a BMP.

    Args:
        pixels: numbers of `bits` bits, `[height, width]`, of which the first row is the upper; or what is stored.
        bits: bits a pixel.
        size: width and height, if the pixels are as stored.
        header: bytes of the second header.
        compression: its number.
        palette: red, green and blue of each number.
        masks: bits of red, green, blue and perhaps alpha.
        top_down: whether the first row is stored first.
    """
    if isinstance(pixels, np.ndarray):
        size = (pixels.shape[1], pixels.shape[0])
        stored = _rows(pixels if top_down else pixels[::-1], bits)
    else:
        stored = pixels
    width, height = size
    if header == CORE:
        second = struct.pack("<IHHHH", CORE, width, height, 1, bits)
        colours = b"".join(bytes([blue, green, red]) for red, green, blue in palette)
    else:
        rows = -height if top_down else height
        second = struct.pack(
            "<IiiHHIIiiII", header, width, rows, 1, bits, compression, len(stored), 2835, 2835, len(palette), 0
        )
        fields = b"".join(mask.to_bytes(4, "little") for mask in masks)
        second += fields if header == INFO else fields.ljust(header - INFO, b"\0")[: header - INFO]
        colours = b"".join(bytes([blue, green, red, 0]) for red, green, blue in palette)
    offset = 14 + len(second) + len(colours)
    return struct.pack("<2sIII", b"BM", offset + len(stored), 0, offset) + second + colours + stored


def _rows(pixels: np.ndarray, bits: int) -> bytes:
    if bits < 8:
        spread = (pixels[..., None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8)
        rows = np.packbits(spread.reshape(len(pixels), -1), axis=1)
    else:
        rows = pixels.astype("<u8").view(np.uint8).reshape(*pixels.shape, 8)[..., : bits // 8].reshape(len(pixels), -1)
    return np.pad(rows, [(0, 0), (0, -rows.shape[1] % 4)]).tobytes()
