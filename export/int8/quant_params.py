"""How values become bytes: scales of activations, and codes of weights that no kernel can saturate on.

No kernel can saturate. CPUs without VNNI multiply unsigned by signed bytes and add neighbours in 16 bits, `vpmaddubsw`,
where 255·(w₁ + w₂) overflows once two neighbouring weights of one sign sum to more than 128 in magnitude. The scale of
each output channel is chosen so that none do, in the order in which kernels read them: tap by tap, channels innermost.
So every CPU computes the same integers, at nearly the full 8 bits; `pair_sums` is what the tests look at.

No error leaves this module.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from export.onnx_graph import Array

LEVELS: Final = 255
PAIR_LIMIT: Final = 128  # 255 · 128 = 32,640 ≤ 32,767
_SCALED_TO: Final = 127  # one less than the limit, for two weights may both be rounded up by a half
SMALLEST_SCALE: Final = 1e-20  # of a channel whose weights are all zero
LARGEST_BIAS: Final = 2**30  # leaves half of 32 bits for the sum


@dataclass(frozen=True)
class QuantParams:
    """An unsigned 8-bit tensor's meaning: value = (code - zero_point) · step."""

    step: float
    zero_point: int = 0

    @classmethod
    def from_range(cls, low: float, high: float) -> "QuantParams":
        """The one that covers [low, high] and has a code for 0 exactly, as padding needs."""
        low, high = min(low, 0.0), max(high, 0.0, 1e-6)
        step = (high - low) / LEVELS
        return cls(step, round(-low / step))


def quantize_weights(weights: Array, smallest_scales: Array | float = 0.0) -> tuple[Array, Array]:
    """`[out, in, height, width]` → int8 codes of the same shape, and the step of each output channel `[out]`.

    smallest_steps: finer ones are not used, for the bias has to fit 32 bits on the same scale.
    """
    flat = _kernel_order(np.abs(weights))
    limits = np.maximum(pair_sums(weights), flat.max(1))
    steps = np.maximum(limits / _SCALED_TO, np.maximum(smallest_scales, SMALLEST_SCALE))
    return np.rint(weights / steps[:, None, None, None]).astype(np.int8), steps


def pair_sums(weights: Array) -> Array:
    """`[out, in, height, width]` → per output channel, the largest |w₁ + w₂| of neighbours of one sign `[out]`."""
    flat = _kernel_order(weights.astype(np.float64))
    sums = [np.maximum(sign * flat[:, 1:], 0) + np.maximum(sign * flat[:, :-1], 0) for sign in (1, -1)]
    largest: Array = np.maximum(*sums).max(1, initial=0)
    return largest


def _kernel_order(weights: Array) -> Array:
    """`[out, in, height, width]` → `[out, height · width · in]`, the order of a channels-last convolution's sum."""
    return weights.transpose(0, 2, 3, 1).reshape(weights.shape[0], -1)
