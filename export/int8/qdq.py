"""Rewrites an int8 model for engines that fuse integer operators themselves, such as OpenVINO.

onnxruntime's CPU provider runs operators of com.microsoft that read and write 8 bits. Other engines read a float graph
in which each tensor stored in 8 bits passes QuantizeLinear and DequantizeLinear (QDQ), and choose their own kernels.
Scales, zero points, weights and biases are those of the int8 model, and so are its answers, except for how engines
round. The layout becomes channels-first.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx
from onnx import NodeProto, helper

from export.errors import QuantizationError
from export.int8.quant_params import EQUALIZED, UINT8_MAX
from export.onnx_graph import Array, Graph, attribute

_PER_CHANNEL: Final = (1, -1, 1, 1)
_COPIED: Final = ("BatchNormalization", "Cast", "Gemm", "Mul")  # after the mean, which is float already


def to_qdq(int8: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites an int8 model, as `quantize` makes it, to a QDQ model with the same input, outputs and metadata.

    Raises:
        QuantizationError: an operator is not one that `quantize` makes.
    """
    return _Rewriter(Graph(int8)).run()


class _Rewriter:
    """Converts node by node. Tensors keep their names, but are float and channels-first."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._output = graph.empty_copy()
        self._output.opsets = [entry for entry in graph.opsets if entry.domain == ""]
        self._nodes, self._constants = self._output.nodes, self._output.constants
        self._pairs: dict[str, str] = {}  # tensor → the same after QuantizeLinear and DequantizeLinear
        self._clips: dict[str, tuple[str, Array, Array]] = {}  # tensor → what is clipped, lower and upper bounds `[C]`

    def run(self) -> onnx.ModelProto:
        convert: dict[str, Callable[[NodeProto], None]] = {
            "Pad": self._pad,
            "Max": self._clip,
            "Min": self._clip,
            "QLinearConv": self._conv,
            "NhwcMaxPool": self._max_pool,
            "QLinearAdd": self._add,
            "Concat": self._concat,
            "DequantizeLinear": self._dequantize,
            "ReduceMean": self._mean,
            **dict.fromkeys(_COPIED, self._copy),
        }
        self._constants |= {"pixel.step": np.array(EQUALIZED.scale, np.float32), "pixel.zero": np.array(0, np.uint8)}
        self._append("Transpose", ["input"], "input.planes", perm=[0, 3, 1, 2])
        self._append("DequantizeLinear", ["input.planes", "pixel.step", "pixel.zero"], "input.unit")
        self._pairs["input"] = "input.unit"
        for node in self._graph.nodes:
            if node.op_type in convert:
                convert[node.op_type](node)
            elif node.op_type != "Expand":  # repeats the bounds of a Max or Min, which reads them from before it
                raise QuantizationError(f"{node.op_type} {node.output[0]!r} cannot be rewritten for other engines")
        return self._output.to_model()

    def _append(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def _constant(self, name: str, values: Array) -> str:
        self._constants[name] = values
        return name

    def _rounded(self, tensor: str, scale: str = "pixel.step", zero_point: str = "pixel.zero") -> str:
        """Returns the name of a tensor as it is stored in 8 bits, by the names of its parameters."""
        if tensor not in self._pairs:
            self._keep_constants(scale, zero_point)
            stored = self._append("QuantizeLinear", [tensor, scale, zero_point], f"{tensor}.stored")
            self._pairs[tensor] = self._append("DequantizeLinear", [stored, scale, zero_point], f"{tensor}.rounded")
        return self._pairs[tensor]

    def _pad(self, node: NodeProto) -> None:
        output, (pads, value) = node.output[0], (self._graph.constants[name] for name in node.input[1:])
        channels_first = self._constant(f"{output}.pads", pads.reshape(2, 4)[:, [0, 3, 1, 2]].reshape(-1))
        darkest = self._constant(f"{output}.value", (value * EQUALIZED.scale).astype(np.float32))
        self._append("Pad", [self._pairs[node.input[0]], channels_first, darkest], output)

    def _clip(self, node: NodeProto) -> None:
        """Applies the frame of the padded input; keeps the bounds of channels for the node that reads the result."""
        source, output = node.input[0], node.output[0]
        expand = self._graph.producer(node.input[1])
        bounds = self._graph.constants[node.input[1] if expand is None else expand.input[0]]
        if bounds.shape[:2] != (1, 1):
            frame = (bounds.transpose(2, 0, 1)[None] * EQUALIZED.scale).astype(np.float32)
            self._append("Max", [source, self._constant(f"{output}.frame", frame)], output)
            return
        bounds = bounds.reshape(-1).astype(np.float64)
        source, low, high = self._clips.get(source, (source, np.zeros_like(bounds), np.full_like(bounds, UINT8_MAX)))
        self._clips[output] = (source, bounds, high) if node.op_type == "Max" else (source, low, bounds)

    def _conv(self, node: NodeProto) -> None:
        source, scale, zero_point, weight, weight_scale, _, _, _, bias = node.input
        constants, output = self._graph.constants, node.output[0]
        weights = constants[weight]
        biases = self._graph.value(bias) * self._graph.value(scale) * self._graph.value(weight_scale)
        if source in self._clips:
            sign, bound = self._rectify(source)
            from_bound = weights.reshape(*weights.shape[:2], -1).sum(2, dtype=np.float64) @ (bound * EQUALIZED.scale)
            biases += from_bound * self._graph.value(weight_scale)
            weights = weights * sign.astype(np.int8).reshape(_PER_CHANNEL)
        self._constant(weight, weights)
        self._constant(weight_scale, constants[weight_scale])
        self._append("DequantizeLinear", [weight, weight_scale], f"{weight}.float", axis=0)
        inputs = [
            self._rounded(source, scale, zero_point),
            f"{weight}.float",
            self._constant(bias, biases.astype(np.float32)),
        ]
        kept = {name: attribute(node, name) for name in ("group", "kernel_shape", "strides", "pads", "dilations")}
        self._append("Conv", inputs, output, **kept)

    def _rectify(self, tensor: str) -> tuple[Array, Array]:
        """Writes a clip by channel as relu(±(x - bound)), whose operators OpenVINO fuses.

        Returns:
            Sign and bound of each channel `[C]`, the bound in units of the scale: clip(x) = bound ± relu(±(x - bound)).

        Raises:
            QuantizationError: a channel is clipped at both ends.
        """
        source, low, high = self._clips[tensor]
        if ((low > 0) & (high < UINT8_MAX)).any():
            raise QuantizationError(f"{tensor!r} has a channel that is clipped at both ends")
        sign, bound = np.where(high < UINT8_MAX, -1.0, 1.0), np.where(high < UINT8_MAX, high, low)
        shift = -sign * bound * EQUALIZED.scale
        factors, shifts = (
            self._constant(f"{tensor}.{part}", values.astype(np.float32).reshape(_PER_CHANNEL))
            for part, values in (("sign", sign), ("shift", shift))
        )
        signed = self._append("Mul", [self._rounded(source), factors], f"{tensor}.signed")
        self._append("Relu", [self._append("Add", [signed, shifts], f"{tensor}.shifted")], tensor)
        return sign, bound

    def _max_pool(self, node: NodeProto) -> None:
        """Pools before rounding, which gives the same."""
        kept = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        self._append("MaxPool", list(node.input), node.output[0], **kept)

    def _add(self, node: NodeProto) -> None:
        first, second = (self._rounded(*node.input[start : start + 3]) for start in (0, 3))
        self._append("Add", [first, second], node.output[0])

    def _concat(self, node: NodeProto) -> None:
        output = node.output[0]
        self._pairs[output] = self._append("Concat", [self._rounded(piece) for piece in node.input], output, axis=1)

    def _dequantize(self, node: NodeProto) -> None:
        source, output = node.input[0], node.output[0]
        if source not in self._clips:
            self._pairs[output] = self._rounded(*node.input)
            return
        clipped, *bounds = self._clips[source]
        low, high = (
            self._constant(f"{output}.{end}", (values * EQUALIZED.scale).astype(np.float32).reshape(_PER_CHANNEL))
            for end, values in zip(("low", "high"), bounds, strict=True)
        )
        self._append("Min", [self._append("Max", [self._rounded(clipped), low], f"{output}.above"), high], output)
        self._pairs[output] = output

    def _mean(self, node: NodeProto) -> None:
        axes = self._constant("spatial_axes", np.array([2, 3], np.int64))
        self._append("ReduceMean", [self._pairs[node.input[0]], axes], node.output[0], keepdims=0)

    def _copy(self, node: NodeProto) -> None:
        self._keep_constants(*node.input)
        self._nodes.append(node)

    def _keep_constants(self, *names: str) -> None:
        for name in names:
            if name in self._graph.constants:
                self._constants[name] = self._graph.constants[name]
