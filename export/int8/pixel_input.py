"""Makes a network take the decoded pixels themselves, so that nobody has to normalise or transpose them.

The normalisation becomes part of the first Conv: `w · (x - mean) / std + b = (w / std) · x + (b - w · mean / std)`.
The Conv's padding by zero was the mean colour, since zero is what the mean normalises to, so the graph now pads each
channel by its mean. The pass changes no answer; `quantize` rounds the padding to the nearest pixels.
"""

from dataclasses import replace
from typing import Final

import numpy as np
from onnx import TensorProto, helper

from export.errors import QuantizationError
from export.int8.bias_correction import conv_of_constants, expected_inputs
from export.int8.calibration import Calibration
from export.onnx_graph import Array, Graph, attribute
from serve.imaging.preprocess import Preprocessing

_TO_PLANES: Final = (0, 3, 1, 2)  # from [N, S, S, 3] to [N, 3, S, S]


def fold_normalisation(graph: Graph, calibration: Calibration, spec: Preprocessing) -> Calibration:
    """Changes the input from FP32 `[N, 3, S, S]`, normalised, to 8-bit RGB `[N, S, S, 3]`.

    Args:
        graph: is changed in place.
        calibration: of the graph as it was.
        spec: the normalisation and S.

    Returns:
        The calibration of the graph as it is now.

    Raises:
        QuantizationError: something other than one Conv of all channels reads the input, or the calibration has another
            number of channels for it.
    """
    conv = graph.only_consumer("input", "Conv")
    if conv is None or attribute(conv, "group", 1) != 1:
        raise QuantizationError("the input is not read by one Conv of all channels, which could normalise it")
    known, _ = expected_inputs(graph, calibration, "input", len(spec.mean))
    mean, std = np.array(spec.mean), np.array(spec.std)
    weights = graph.value(conv.input[1]) / std[:, None, None]
    graph.set_weights(conv, weights, graph.bias(conv) - conv_of_constants(weights, mean, 1))
    graph.constants |= {"input.scale": np.array(1 / 255, np.float32), "input.zero": np.array(0, np.uint8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["input", "input.scale", "input.zero"], ["input.unit"]),
        helper.make_node("Transpose", ["input.unit"], ["input.planes"], perm=_TO_PLANES),
    ]
    pads = attribute(conv, "pads", [0, 0, 0, 0])
    if any(pads):
        top, left, bottom, right = pads
        graph.constants["input.pads"] = np.array([0, 0, top, left, 0, 0, bottom, right])
        graph.constants["input.darkest"] = np.array(mean.min(), np.float32)
        padding = ["input.planes", "input.pads", "input.darkest"]
        nodes.append(helper.make_node("Pad", padding, ["input.padded"]))
        if len(set(spec.mean)) > 1:  # Pad takes one value; three of them would be slower, by 0.1 ms
            graph.constants["input.frame"] = _frame(mean, spec.crop, pads)
            nodes.append(helper.make_node("Max", ["input.padded", "input.frame"], ["input.framed"]))
        next(entry for entry in conv.attribute if entry.name == "pads").ints[:] = [0, 0, 0, 0]
    conv.input[0] = nodes[-1].output[0]
    graph.nodes[:0] = nodes
    side = [spec.crop, spec.crop]
    graph.inputs = [helper.make_tensor_value_info("input", TensorProto.UINT8, ["batch", *side, 3])]
    means = dict(calibration.means)
    if "input" in means:
        means[conv.input[0]] = known * std + mean
    return replace(calibration, means=means)


def _frame(mean: Array, side: int, pads: list[int]) -> Array:
    """Returns the mean colour where the padding is and 0 elsewhere, FP32 `[1, 3, height, width]`."""
    top, left, bottom, right = pads
    frame = np.broadcast_to(mean[:, None, None], (3, top + side + bottom, left + side + right)).astype(np.float32)
    frame[:, top : top + side, left : left + side] = 0
    return frame[None]
