"""Scales with which a QLinearAdd gives the same integers on every CPU.

onnxruntime's kernels differ: SSE and AVX2 round the products with the scales' ratios differently, NEON takes 22-bit
ratios and rounds ties away from zero. They agree where no exact sum is close to a rounding tie. If the scales of terms
and result are odd multiples of one unit, n of it for the result, every exact sum is a whole number of n-ths, and n is
odd: the nearest tie is 1/(2n) away, five times as far as the kernels' errors add up to.
"""

import math
from typing import Final

from onnx import NodeProto

from export.int8.calibration import Calibration
from export.int8.graph_passes import HEADROOM
from export.int8.quant_params import QuantParams
from export.onnx_graph import Graph

_LARGEST_MULTIPLE: Final = 511


class Sums:
    """The tensors that Adds read or write, and the unit of their scales."""

    def __init__(self, graph: Graph, calibration: Calibration) -> None:
        adds = [node for node in graph.nodes if node.op_type == "Add"]
        names = {name for node in adds for name in (*node.input, stored_tensor(graph, node))}
        self._tensors = {_before_pooling(graph, name) for name in names}
        ranges = [calibration.ranges[name] for name in self._tensors if name in calibration.ranges]
        scales = [QuantParams.from_range(low.item(), high.item()).scale * HEADROOM for low, high in ranges]
        self._unit = max(scales, default=1.0) / _LARGEST_MULTIPLE

    def widen(self, tensor: str, params: QuantParams) -> QuantParams:
        """Widens the scale of a tensor of an Add to an odd multiple of the unit; other tensors keep theirs."""
        if tensor not in self._tensors:
            return params
        multiple = math.ceil(params.scale / self._unit - 1e-6) | 1
        return QuantParams(multiple * self._unit, params.zero_point)


def stored_tensor(graph: Graph, node: NodeProto) -> str:
    """Returns the tensor that a node stores, after a ReLU or Clip that is fused into it."""
    for op_type in ("Relu", "Clip"):
        activation = graph.only_consumer(node.output[0], op_type)
        if activation is not None:
            return str(activation.output[0])
    return str(node.output[0])


def _before_pooling(graph: Graph, tensor: str) -> str:
    """Returns the tensor whose parameters a MaxPool's output has."""
    producer = graph.producer(tensor)
    return (
        _before_pooling(graph, producer.input[0]) if producer is not None and producer.op_type == "MaxPool" else tensor
    )
