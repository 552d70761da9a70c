"""The interface of image decoders, and one that decodes in the server's own process, for debugging."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from serve.imaging.formats import Data
from serve.imaging.messages import Rules

OFF: Final = "off"
# Lets the calling thread's image step aside because it takes long; returns whether it did. The argument is called if
# the image has to wait, in which case it is decoded again; None if it must go on. Raises `QueueFull`.
OnSlow = Callable[[Callable[[], None] | None], bool]


@dataclass(frozen=True)
class Crop:
    """The model's crop of an image.

    Attributes:
        pixels: 8-bit RGB `[crop, crop, 3]`.
        decode_seconds, resize_seconds: what both steps took.
        size: width and height of the upright image.
        view: the upright image at another size, 8-bit RGB `[height, width, 3]`; empty if it was not asked for.
    """

    pixels: bytes
    decode_seconds: float
    resize_seconds: float
    size: tuple[int, int]
    view: bytes = b""


class Decoders(Protocol):
    """Decodes images for a model.

    Attributes:
        state: `sealed`, `isolated` or `off`.
        on_death: called with one of `DEATHS`.
        on_slow: called while an image takes long.
        is_alone: whether no other image is being worked on; then it may use any CPU.
    """

    state: str
    on_death: Callable[[str], None]
    on_slow: OnSlow
    is_alone: Callable[[], bool]

    def decode(self, data: Data, format_name: str, view: int = 0) -> Crop:
        """Decodes an image of a known format; thread-safe.

        Args:
            view: the longer side of the view to return, at most `MAX_VIEW` pixels; 0 for none.

        Raises:
            RequestError: the image is refused.
        """

    def close(self) -> None:
        """Ends the decoders."""


class InProcessDecoder:
    """Decodes on the calling thread, without any protection."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.state = OFF
        self.on_death: Callable[[str], None] = lambda _: None
        self.on_slow: OnSlow = lambda _: False
        self.is_alone: Callable[[], bool] = lambda: False

    def decode(self, data: Data, format_name: str, view: int = 0) -> Crop:
        """As `Decoders.decode`, within the limits on pixels and frames only."""
        # Not at the top, because the server's process otherwise loads no decoder.
        from serve.imaging.decode import decode_upright, open_image
        from serve.imaging.resize import crop_bytes

        rules, started = self._rules, time.perf_counter()
        image = open_image(data, rules.spec, rules.limits)
        width, height = image.size
        upright = decode_upright(image, rules.apply_orientation, None if rules.exact else rules.spec, view)
        decoded = time.perf_counter()
        pixels = crop_bytes(upright.rgb, upright.size, rules.spec, rules.exact, rules.jpeg)
        seen = upright.view.tobytes() if upright.view else b""
        size = (height, width) if upright.turned else (width, height)
        return Crop(pixels, decoded - started, time.perf_counter() - decoded, size, seen)

    def close(self) -> None:
        """Does nothing."""
