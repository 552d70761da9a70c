"""Corrects biases for what rounding adds to the expected output of a layer (Nagel et al. 2019, section 4.2)."""

import numpy as np

from export.errors import QuantizationError
from export.int8.calibration import Calibration
from export.int8.quant_params import UINT8_MAX, quantize_equalized
from export.onnx_graph import Array, Graph


def expected_inputs(graph: Graph, calibration: Calibration, tensor: str, channels: int) -> tuple[Array, Array]:
    """Returns the expected input of a layer per channel, in the float graph and in the quantized one, as float values.

    They differ if a channel's clipping threshold is rounded: clipped values move with the threshold, others don't.

    Args:
        graph: the rewritten float graph.
        calibration: with the channels' means and shares of values that are not clipped.
        tensor: the layer's input.
        channels: its number of channels.

    Returns:
        Two arrays `[channels]`; zeros, which correct nothing, if the calibration lacks the tensor.

    Raises:
        QuantizationError: the calibration has another number of channels.
    """
    mean = calibration.means.get(tensor)
    if mean is None:
        return np.zeros(channels), np.zeros(channels)
    if len(mean) != channels:
        raise QuantizationError(f"the calibration has {len(mean)} channels for {tensor!r}, the graph has {channels}")
    if tensor not in calibration.active:
        return mean, mean
    low, high = (graph.value(f"{tensor}.{end}").reshape(-1) for end in ("low", "high"))
    threshold = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high, 0))  # a dead channel has neither
    rounded = quantize_equalized(threshold) / UINT8_MAX
    # A threshold outside of [0, 1] is never reached, or always: the channel then is unclipped, or a constant.
    reached = np.clip(threshold, 0, 1) == threshold
    clipped = 1 - calibration.active[tensor]
    return mean, np.where(reached | (clipped > 0.5), mean + (rounded - threshold) * clipped, mean)


def conv_of_constants(weights: Array, inputs: Array, group: int) -> Array:
    """Returns the output of a Conv without padding or bias, `[out]`, on channels that are constant, `[in]`."""
    totals = weights.sum((2, 3))
    per_group = inputs.reshape(group, -1)
    output: Array = np.einsum("goi,gi->go", totals.reshape(group, -1, totals.shape[1]), per_group).reshape(-1)
    return output
