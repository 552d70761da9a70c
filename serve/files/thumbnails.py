"""Makes small JPEG files of what the model saw, in sealed processes that read no image from outside.

A decoder that was taken over by an image can hand back nothing but the pixels of the model's input. These are written
as BMP here, and decoders of a second pool, which see only such files, encode them. So no byte that a browser decodes
comes from a process that has read a stranger's file.
"""

import struct
from contextlib import suppress
from dataclasses import replace
from typing import Final

import numpy as np

from serve.config.settings import Config
from serve.errors import RequestError
from serve.imaging.normalise import as_pixels
from serve.model.classifier import Classifier
from serve.model.decoders import make_decoders

SIDE: Final = 128
_HEADER: Final = struct.Struct("<2sI4xI IiiHH24x")  # BITMAPFILEHEADER and BITMAPINFOHEADER


class Thumbnails:
    """Makes thumbnails of images that a classifier has prepared; thread-safe.

    Args:
        classifier: has prepared the images; its fork server forks the processes.
        config: its settings.

    Raises:
        StartError: no decoder process can be started.
    """

    def __init__(self, classifier: Classifier, config: Config) -> None:
        self._spec = classifier.preprocessing
        crop = self._spec.crop
        self._decoders = make_decoders(
            replace(
                config,
                decode="fast",
                decoder_reuse=("bmp",),
                max_pixels=max(crop, SIDE) ** 2,
                max_request_bytes=_HEADER.size + 4 * crop**2,
            ),
            replace(self._spec, resize=SIDE, crop=SIDE, interpolation="bilinear"),
            classifier.fork_server,
            jpeg=True,
        )

    def make(self, pixels: bytes) -> bytes:
        """Returns a JPEG file of `SIDE` × `SIDE` pixels; nothing if that fails.

        Args:
            pixels: the model's crop, 8-bit RGB `[S, S, 3]`.
        """
        with suppress(RequestError):
            crop = self._decoders.decode(_bmp(as_pixels(pixels, self._spec)[0]), "BMP")
            return crop.pixels.rstrip(b"\0")
        return b""

    def close(self) -> None:
        """Ends the processes."""
        self._decoders.close()


def _bmp(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    """Returns a BMP file of 8-bit RGB `[height, width, 3]`: rows from the bottom, BGR, padded to four bytes."""
    height, width = pixels.shape[:2]
    rows = pixels[::-1, :, ::-1].reshape(height, -1)
    body = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).tobytes()
    return _HEADER.pack(b"BM", _HEADER.size + len(body), _HEADER.size, 40, width, height, 1, 24) + body
