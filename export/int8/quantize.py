"""Turns the rewritten float graph into an int8 graph of onnxruntime's integer operators, in channels-last layout.

Activations are unsigned 8-bit with one scale per tensor, weights signed 8-bit with one scale per output channel, sums
32-bit. The file has the operators that run; in a float graph onnxruntime would have to find them, at each start.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from export.errors import QuantizationError
from export.int8.bias_correction import conv_of_constants, expected_inputs
from export.int8.calibration import Calibration
from export.int8.graph_passes import affine, scale_and_shift
from export.int8.quant_params import (
    EQUALIZED,
    LARGEST_BIAS,
    SMALLEST_SCALE,
    UINT8_MAX,
    QuantParams,
    activation_params,
    quantize_equalized,
    quantize_weights,
)
from export.int8.sums import Sums, stored_tensor
from export.onnx_graph import Array, Graph, attribute

# Given a Conv's output and its weights in units of their scales: the argument `choose` of `quantize_weights`.
Rounding = Callable[[str, Array], Array | None]
_MICROSOFT: Final = "com.microsoft"


def quantize(
    graph: Graph, calibration: Calibration, classifier_bits: int = 16, rounding: Rounding | None = None
) -> onnx.ModelProto:
    """Quantizes a rewritten float graph; its metadata is kept.

    Args:
        graph: takes pixels, see `fold_normalisation`; it is left as it is.
        calibration: ranges for every tensor that is stored, means for bias correction where known.
        classifier_bits: 16 or 8, for the stored weights of the last layer.
        rounding: chooses how the weights of Convs are rounded; by default as the calibration says.

    Raises:
        QuantizationError: an operator is not supported, or the calibration does not fit the graph.
    """
    rounding = rounding or (lambda conv, scaled: calibration.rounding.get(conv))
    return _Quantizer(graph, calibration, classifier_bits, rounding).run()


class _Quantizer:
    """Converts node by node. Tensors keep their names; `_params` has the parameters of those that are 8-bit."""

    def __init__(self, graph: Graph, calibration: Calibration, bits: int, rounding: Rounding) -> None:
        self._classifier_bits, self._rounding = bits, rounding
        self._graph = graph
        self._calibration = calibration
        self._params: dict[str, QuantParams] = {}
        self._alias: dict[str, str] = {}
        self._averaged: dict[str, str] = {}  # mean over height and width → what it is of
        self._widths = graph.widths()
        self._sums = Sums(graph, calibration)
        self._output = graph.empty_copy()
        self._output.opsets.append(helper.make_opsetid(_MICROSOFT, 1))
        self._nodes, self._constants = self._output.nodes, self._output.constants

    def run(self) -> onnx.ModelProto:
        convert: dict[str, Callable[[NodeProto], None]] = {
            "DequantizeLinear": self._pixels,
            "Transpose": self._pixels,
            "Pad": self._pad,
            "Conv": self._conv,
            "Max": self._clip,
            "Min": self._clip,
            "Concat": self._concat,
            "MaxPool": self._max_pool,
            "Add": self._add,
            "ReduceMean": self._mean,
            "GlobalAveragePool": self._mean,
            "Reshape": self._flatten,
            "Flatten": self._flatten,
            "BatchNormalization": self._batchnorm,
            "Gemm": self._gemm,
        }
        for node in self._graph.nodes:
            if node.op_type in convert:
                convert[node.op_type](node)
            elif node.op_type not in {"Relu", "Clip"}:  # these are fused into the node before, see `_stored`
                raise QuantizationError(f"{node.op_type} {node.output[0]!r} cannot be quantized")
            elif (tensor := node.output[0]) not in self._params:
                raise QuantizationError(f"{node.op_type} {tensor!r} cannot be fused into the node before it")
        return self._output.to_model()

    def _pixels(self, node: NodeProto) -> None:
        """Leaves the node out: the pixels are 8 bits of the range from 0 to 1, with the channels last."""
        self._params[node.output[0]] = EQUALIZED
        self._alias[node.output[0]] = self._name(node.input[0])

    def _pad(self, node: NodeProto) -> None:
        output, (pads, value) = node.output[0], (self._graph.constants[name] for name in node.input[1:])
        self._constants[f"{output}.pads"] = pads.reshape(2, 4)[:, [0, 2, 3, 1]].reshape(-1)
        self._constants[f"{output}.value"] = quantize_equalized(value).astype(np.uint8)
        inputs = [self._name(node.input[0]), f"{output}.pads", f"{output}.value"]
        self._nodes.append(helper.make_node("Pad", inputs, [output]))
        self._params[output] = self._params[node.input[0]]

    def _conv(self, node: NodeProto) -> None:
        source, group = node.input[0], attribute(node, "group", 1)
        weights = self._graph.value(node.input[1])
        tensor, params = self._stored(node)
        constants = self._conv_constants(node, weights, group)
        self._nodes.append(
            helper.make_node(
                "QLinearConv",
                [
                    *(self._name(source), *self._param_constants(self._params[source])),
                    *constants[:3],
                    *(*self._param_constants(params), constants[3]),
                ],
                [tensor],
                domain=_MICROSOFT,
                channels_last=1,
                group=group,
                kernel_shape=list(weights.shape[2:]),
                strides=attribute(node, "strides", [1, 1]),
                pads=attribute(node, "pads", [0, 0, 0, 0]),
                dilations=attribute(node, "dilations", [1, 1]),
            )
        )
        self._params[tensor] = params

    def _conv_constants(self, node: NodeProto, weights: Array, group: int) -> list[str]:
        """Stores the quantized weights, their scales and zero points, and the corrected bias; returns their names."""
        source, bias = node.input[0], self._graph.bias(node)
        input_scale = self._params[source].scale
        quantized, scales = quantize_weights(
            weights, np.abs(bias) / (input_scale * LARGEST_BIAS), partial(self._rounding, node.output[0])
        )
        wanted, got = expected_inputs(self._graph, self._calibration, source, weights.shape[1] * group)
        bias = bias + conv_of_constants(weights, wanted, group)
        bias = bias - conv_of_constants(quantized * scales[:, None, None, None], got, group)
        constants = {
            "weight": quantized,
            "weight_step": scales.astype(np.float32),
            "weight_zero": np.zeros(len(scales), np.int8),
            "bias_codes": np.rint(bias / (input_scale * scales)).astype(np.int32),
        }
        self._constants |= {f"{node.output[0]}.{part}": values for part, values in constants.items()}
        return [f"{node.output[0]}.{part}" for part in constants]

    def _stored(self, node: NodeProto) -> tuple[str, QuantParams]:
        """Returns the tensor that the node stores, after a ReLU or Clip that is fused into it, and its parameters."""
        tensor = stored_tensor(self._graph, node)
        return tensor, activation_params(self._graph, self._calibration, tensor, self._sums.widen)

    def _clip(self, node: NodeProto) -> None:
        """Applies Max or Min with constants to quantized values; leaves it out if it cannot change any."""
        source, output = node.input[0], node.output[0]
        self._params[output] = self._params[source]
        values = quantize_equalized(self._graph.value(node.input[1])[0]).astype(np.uint8)
        if (values == (0 if node.op_type == "Max" else UINT8_MAX)).all():
            self._alias[output] = self._name(source)
            return
        bounds = [f"{output}.{part}" for part in ("bounds", "shape", "rows")]
        self._constants[bounds[0]] = values.transpose(1, 2, 0)
        # A row of pixels at a time takes less than a pixel at a time. onnxruntime expands them when it loads the file.
        self._constants[bounds[1]] = np.array([1, self._widths[source], 1])
        self._nodes.append(helper.make_node("Expand", bounds[:2], bounds[2:]))
        self._nodes.append(helper.make_node(node.op_type, [self._name(source), bounds[2]], [output]))

    def _concat(self, node: NodeProto) -> None:
        if any(self._params.get(piece) != EQUALIZED for piece in node.input):
            raise QuantizationError(f"the inputs of Concat {node.output[0]!r} do not have a common scale")
        pieces = [self._name(piece) for piece in node.input]
        self._nodes.append(helper.make_node("Concat", pieces, list(node.output), axis=3))
        self._params[node.output[0]] = EQUALIZED

    def _max_pool(self, node: NodeProto) -> None:
        kept = {name: attribute(node, name) for name in ("kernel_shape", "strides", "pads", "dilations", "ceil_mode")}
        given = {name: value for name, value in kept.items() if value is not None}
        source = self._name(node.input[0])
        self._nodes.append(helper.make_node("NhwcMaxPool", [source], list(node.output), domain=_MICROSOFT, **given))
        self._params[node.output[0]] = self._params[node.input[0]]

    def _add(self, node: NodeProto) -> None:
        tensor, params = self._stored(node)
        operands = [(self._name(name), *self._param_constants(self._params[name])) for name in node.input]
        inputs = [*operands[0], *operands[1], *self._param_constants(params)]
        self._nodes.append(helper.make_node("QLinearAdd", inputs, [tensor], domain=_MICROSOFT))
        self._params[tensor] = params

    def _mean(self, node: NodeProto) -> None:
        """Computes the mean over height and width in float: it reads 8 bits, and little work is left after it."""
        source, output = node.input[0], node.output[0]
        inputs = [self._name(source), *self._param_constants(self._params[source])]
        self._averaged[output] = source
        self._constants["spatial_axes"] = np.array([1, 2], np.int64)
        self._nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{output}.float"]))
        self._nodes.append(helper.make_node("ReduceMean", [f"{output}.float", "spatial_axes"], [output], keepdims=0))

    def _flatten(self, node: NodeProto) -> None:
        """Leaves the node out: the mean is `[N, C]` already."""
        if node.input[0] in self._params:
            raise QuantizationError(f"{node.op_type} {node.output[0]!r} flattens an image, not its mean")
        self._alias[node.output[0]] = self._name(node.input[0])

    def _batchnorm(self, node: NodeProto) -> None:
        """Scales and shifts the mean in float, and corrects it for the rounding of clipping thresholds."""
        mean, output = self._name(node.input[0]), node.output[0]
        if mean not in self._averaged:
            raise QuantizationError(f"{node.op_type} {output!r} cannot be quantized: it is not applied to a mean")
        scale, shift = affine(self._graph, node)
        wanted, got = expected_inputs(self._graph, self._calibration, self._averaged[mean], len(scale))
        self._nodes.append(scale_and_shift(self._output, mean, output, scale, shift + scale * (wanted - got)))

    def _gemm(self, node: NodeProto) -> None:
        """Computes the classifier in float, a thousandth of the work; its weights are stored small, widened at load."""
        if attribute(node, "transB", 0) != 1:
            raise QuantizationError(f"Gemm {node.output[0]!r} cannot be quantized: its weights are not transposed")
        weights, bias = self._graph.constants[node.input[1]], self._graph.bias(node)
        output = node.output[0]
        stored, wide = f"{output}.weight", f"{output}.weight32"
        self._constants[f"{output}.bias"] = bias.astype(np.float32)
        if self._classifier_bits == 8:
            scales = np.maximum(np.abs(weights).max(1, keepdims=True), SMALLEST_SCALE) / 127
            self._constants[stored] = np.rint(weights / scales).astype(np.int8)
            self._constants[f"{output}.weight_step"] = scales.astype(np.float32)
            self._nodes.append(helper.make_node("Cast", [stored], [f"{output}.codes"], to=TensorProto.FLOAT))
            self._nodes.append(helper.make_node("Mul", [f"{output}.codes", f"{output}.weight_step"], [wide]))
        else:
            self._constants[stored] = weights.astype(np.float16)
            self._nodes.append(helper.make_node("Cast", [stored], [wide], to=TensorProto.FLOAT))
        inputs = [self._name(node.input[0]), wide, f"{output}.bias"]
        self._nodes.append(helper.make_node("Gemm", inputs, [output], transB=1))

    def _name(self, tensor: str) -> str:
        return self._alias.get(tensor, tensor)

    def _param_constants(self, params: QuantParams) -> tuple[str, str]:
        """Stores a scale and a zero point, each once per value; returns their names."""
        scale, zero_point = f"step.{params.scale:.9g}.{params.zero_point}", f"zero.{params.zero_point}"
        self._constants[scale] = np.array(params.scale, np.float32)
        self._constants[zero_point] = np.array(params.zero_point, np.uint8)
        return scale, zero_point
