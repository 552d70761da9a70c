"""Draws a map of what the places of an image add over the image.

The colours are those of viridis, whose lightness rises evenly, so that people with any kind of colour vision can tell
them apart, and in grey they keep their order.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from serve.imaging.normalise import FloatArray, Pixels

Box = tuple[float, float, float, float]

# Ten of the 256 colours of matplotlib's viridis (CC0), at equal distances.
_VIRIDIS: Final = bytes.fromhex("440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725")
_LEVELS: Final = 256
_ROWS: Final = 64  # drawn at once, so that intermediate values take little memory


def color_table() -> Pixels:
    """Returns the colours from nothing to the most, 8-bit RGB `[256, 3]`."""
    given = np.frombuffer(_VIRIDIS, np.uint8).reshape(-1, 3)
    at = np.linspace(0, len(given) - 1, _LEVELS)
    channels = [np.interp(at, range(len(given)), given[:, channel]) for channel in range(3)]
    table: Pixels = np.rint(np.stack(channels, axis=1)).astype(np.uint8)
    return table


_COLORS: Final = color_table()


def draw_map(view: Pixels, size: tuple[int, int], box: Box, places: FloatArray, opacity: float) -> Pixels:
    """Returns an image with a map over the part of it that the model saw.

    The map is resampled bilinearly. Its greatest value has the last colour; zero and what is less have the first. Where
    the model saw nothing, nothing is drawn.

    Args:
        view: the upright image, 8-bit RGB `[height, width, 3]`, at any size.
        size: the width and height of the image in the pixels of `box`.
        box: left, top, right and bottom of what the model saw.
        places: FP32 `[h, w]`: equal parts of the box.
        opacity: of the map, from 0, where only the image is seen, to 1, where only the map is.
    """
    (height, width), (left, top, right, bottom) = view.shape[:2], box
    rows, down = _weights(height, size[1], top, bottom, places.shape[0])
    columns, across = _weights(width, size[0], left, right, places.shape[1])
    most = float(places.max())
    shares = (places / most if most > 0 else np.zeros(places.shape)) @ across.T
    part = round(opacity * 256)
    colors = _COLORS.astype(np.uint16) * part + 128  # half of 256, so that the quotients below are rounded
    drawn = view.copy()
    for first in range(0, len(down), _ROWS):
        weights = down[first : first + _ROWS]
        region = drawn[rows.start + first : rows.start + first + len(weights), columns]
        levels = np.rint((weights @ shares).clip(0, 1) * (_LEVELS - 1)).astype(np.uint8)
        region[...] = (region * np.uint16(256 - part) + colors[levels]) >> 8
    return drawn


def _weights(pixels: int, length: int, start: float, end: float, places: int) -> tuple[slice, npt.NDArray[np.float64]]:
    """Returns which pixels of a side have their centre in the box, and how much each takes of each place.

    Args:
        pixels: of the side.
        length: of the side in the units of `start` and `end`.
        start, end: of the box.
        places: of the map along this side.

    Returns:
        The pixels, and FP64 `[pixels in the box, places]`; each row adds up to 1.
    """
    centres = (np.arange(pixels) + 0.5) * (length / pixels)
    first, last = np.searchsorted(centres, (start, end))
    first = min(first, pixels - 1)
    last = max(last, first + 1)  # of a very long image the box is narrower than a pixel
    at = ((centres[first:last] - start) / (end - start) * places - 0.5).clip(0, places - 1)
    weights: npt.NDArray[np.float64] = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(places)))
    return slice(int(first), int(last)), weights
