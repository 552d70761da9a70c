"""Quantization parameters of activations, and quantized weights that no kernel can saturate on.

CPUs without VNNI multiply unsigned by signed bytes and add neighbouring products in 16 bits (`vpmaddubsw`). There
255·(w₁ + w₂) overflows if two neighbouring weights of one sign sum to more than 128 in magnitude. Each output channel's
scale is chosen so that none do, whether weights are rounded up or down, in the order in which kernels read weights: by
kernel position, then by input channel. So every CPU computes the same integers, at nearly the full 8 bits. The tests
check it with `pair_sums`, and `make cpus` shows it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from export.errors import QuantizationError
from export.int8.calibration import Calibration
from export.int8.graph_passes import HEADROOM
from export.onnx_graph import Array, Graph

UINT8_MAX: Final = 255
PAIR_LIMIT: Final = 128  # 255 · 128 = 32,640 ≤ 32,767
_SCALED_TO: Final = 127 - 1e-6  # two weights that sum to less than 127 stay within the limit if both are rounded up
SMALLEST_SCALE: Final = 1e-20  # for a channel whose weights are all zero
LARGEST_BIAS: Final = 2**30  # a quantized bias; leaves half of 32 bits for the sum


@dataclass(frozen=True)
class QuantParams:
    """Parameters of a tensor quantized to unsigned 8 bits: value = (quantized - zero_point) · scale."""

    scale: float
    zero_point: int = 0

    @classmethod
    def from_range(cls, low: float, high: float) -> "QuantParams":
        """Covers [low, high] and represents 0 exactly, which padding needs."""
        low, high = min(low, 0.0), max(high, 0.0, 1e-6)
        scale = (high - low) / UINT8_MAX
        return cls(scale, round(-low / scale))


EQUALIZED: Final = QuantParams(1 / UINT8_MAX)  # of all tensors that `equalize_channels` scaled to [0, 1]


def quantize_equalized(values: Array) -> Array:
    """Quantizes with `EQUALIZED`; values outside of [0, 1] are clipped."""
    quantized: Array = np.rint(np.clip(values, 0, 1) * UINT8_MAX)
    return quantized


def activation_params(
    graph: Graph, calibration: Calibration, tensor: str, widen: Callable[[str, "QuantParams"], "QuantParams"]
) -> "QuantParams":
    """Returns the parameters of a tensor that the int8 graph stores; `widen` may give it a larger scale.

    Raises:
        QuantizationError: the calibration has no range for it.
    """
    readers = graph.consumers(tensor)
    while len(readers) == 1 and readers[0].op_type == "MaxPool":  # its output has the parameters of its input
        readers = graph.consumers(readers[0].output[0])
    if any(reader.op_type in {"Concat", "Max"} for reader in readers):
        return EQUALIZED
    if tensor not in calibration.ranges:
        raise QuantizationError(f"the calibration has no range for {tensor!r}")
    low, high = calibration.ranges[tensor]
    low, high = low.item() * HEADROOM, high.item() * HEADROOM
    producer = graph.producer(tensor)
    if producer is not None and producer.op_type == "Clip":  # 8 bits have to saturate where the Clip does
        return QuantParams.from_range(low, min(high, graph.constants[producer.input[2]].item()))
    return widen(tensor, QuantParams.from_range(low, high))


def quantize_weights(
    weights: Array, smallest_scales: Array | float = 0.0, choose: Callable[[Array], Array | None] = lambda scaled: None
) -> tuple[Array, Array]:
    """Quantizes weights to 8 bits with a scale for each output channel.

    Args:
        weights: `[out, in, height, width]`.
        smallest_scales: lower bounds `[out]`, because the bias has to fit 32 bits at the same scale.
        choose: given the weights in units of their scales, returns which are rounded to the second nearest integer, one
            bit a weight in `kernel_order`, packed; None rounds all to the nearest.

    Returns:
        Quantized weights, int8 of the same shape, and scales `[out]`.

    Raises:
        QuantizationError: there are bits for another number of weights.
    """
    flat = kernel_order(np.abs(weights))
    limits = np.maximum(pair_sums(weights), flat.max(1))
    scales = np.maximum(limits / _SCALED_TO, np.maximum(smallest_scales, SMALLEST_SCALE))
    scaled = weights / scales[:, None, None, None]
    quantized = np.rint(scaled)
    second = choose(scaled)
    if second is not None:
        if len(second) != -(-weights.size // 8):
            raise QuantizationError(f"the calibration has {8 * len(second)} roundings for {weights.size} weights")
        height, width = weights.shape[2:]
        bits = np.unpackbits(second, count=weights.size).reshape(len(weights), height, width, -1).transpose(0, 3, 1, 2)
        quantized += bits * np.sign(scaled - quantized)
    return quantized.astype(np.int8), scales


def pair_sums(weights: Array) -> Array:
    """Returns the largest |w₁ + w₂| of neighbouring weights of one sign `[out]`, of `[out, in, height, width]`."""
    flat = kernel_order(weights.astype(np.float64))
    sums = [np.maximum(sign * flat[:, 1:], 0) + np.maximum(sign * flat[:, :-1], 0) for sign in (1, -1)]
    largest: Array = np.maximum(*sums).max(1, initial=0)
    return largest


def kernel_order(weights: Array) -> Array:
    """Reorders `[out, in, height, width]` to `[out, height · width · in]`, as a channels-last convolution sums."""
    return weights.transpose(0, 2, 3, 1).reshape(weights.shape[0], -1)
