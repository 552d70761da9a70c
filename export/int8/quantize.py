"""Float graph → int8 graph of onnxruntime's own integer operators, in channels-last layout.

Activations are unsigned 8-bit with one scale a tensor, weights signed 8-bit with one scale an output channel, sums
32-bit. What is written is what runs: no pass of the runtime has to find the integer operators in a float graph first,
which also makes it start faster. Errors that leave here: `QuantizationError`.

Every bias is corrected for what rounding does to the layer's expected output (Nagel et al. 2019, section 4.2).
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from export.errors import QuantizationError
from export.int8.calibration import Calibration
from export.int8.graph_passes import HEADROOM
from export.int8.quant_params import LARGEST_BIAS, LEVELS, SMALLEST_SCALE, QuantParams, quantize_weights
from export.onnx_graph import Array, Graph, attribute

_MICROSOFT: Final = "com.microsoft"


EQUALIZED: Final = QuantParams(1 / LEVELS)  # what `equalize_channels` made of everything that meets in a Concat


def quantize(
    model: onnx.ModelProto, calibration: Calibration, input_range: tuple[float, float], small_classifier: bool = False
) -> onnx.ModelProto:
    """Quantise a float model as the rewrites leave it; metadata is kept.

    input_range: the smallest and largest value that preprocessing can give. small_classifier: store the last layer's
    weights in 8 bits rather than 16. Raises `QuantizationError` naming the first operator without an integer form.
    """
    return _Quantizer(model, calibration, input_range, small_classifier).run()


class _Quantizer:
    """One pass over the nodes. Tensors keep their names; `_scales` has those that are 8-bit by now."""

    def __init__(
        self, model: onnx.ModelProto, calibration: Calibration, input_range: tuple[float, float], small_classifier: bool
    ) -> None:
        self._small_classifier = small_classifier
        self._model = model
        self._graph = Graph(model)
        self._calibration = calibration
        self._scales: dict[str, QuantParams] = {}
        self._alias: dict[str, str] = {}
        self._input_range = input_range
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, Array] = {}

    def run(self) -> onnx.ModelProto:
        self._quantize_input()
        convert: dict[str, Callable[[NodeProto], None]] = {
            "Conv": self._conv,
            "Max": self._clip_low,
            "Min": self._clip_high,
            "Concat": self._concat,
            "MaxPool": self._max_pool,
            "Add": self._add,
            "ReduceMean": self._mean,
            "GlobalAveragePool": self._mean,
            "Reshape": self._flatten,
            "Flatten": self._flatten,
            "Gemm": self._gemm,
        }
        fused = {"Relu", "Clip"}  # done by the saturation of the node before, which `_stored` looked ahead for
        for node in self._graph.nodes:
            if node.op_type in fused:
                if node.output[0] not in self._scales:
                    raise QuantizationError(f"{node.op_type} {node.output[0]!r} follows nothing that can absorb it")
            elif node.op_type in convert:
                convert[node.op_type](node)
            else:
                raise QuantizationError(f"{node.op_type} {node.output[0]!r} has no integer form here")
        return self._to_model()

    def _quantize_input(self) -> None:
        scale = QuantParams.from_range(*self._input_range)
        self._scales["input"] = scale
        step, zero = self._scale_constants("input", scale)
        self._nodes.append(helper.make_node("QuantizeLinear", ["input", step, zero], ["input.codes"]))
        self._nodes.append(helper.make_node("Transpose", ["input.codes"], ["input.nhwc"], perm=[0, 2, 3, 1]))
        self._alias["input"] = "input.nhwc"

    def _conv(self, node: NodeProto) -> None:
        graph, source = self._graph, node.input[0]
        weights, bias = graph.value(node.input[1]), graph.bias(node)
        group = attribute(node, "group", 1)
        tensor, scale = self._stored(node)
        step_in = self._scales[source].step
        codes, steps = quantize_weights(weights, np.abs(bias) / (step_in * LARGEST_BIAS))
        real, integer = self._expected_inputs(source, weights.shape[1] * group)
        bias = bias + _summed(weights, real, group) - _summed(codes * steps[:, None, None, None], integer, group)
        name = node.output[0]
        names = [f"{name}.{part}" for part in ("weight", "weight_step", "weight_zero", "bias_codes")]
        arrays = (codes, steps.astype(np.float32), np.zeros(len(steps), np.int8), np.rint(bias / (step_in * steps)))
        self._constants |= dict(zip(names, (*arrays[:3], arrays[3].astype(np.int32)), strict=True))
        self._nodes.append(
            helper.make_node(
                "QLinearConv",
                [
                    *(self._name(source), *self._scale_constants(source, self._scales[source])),
                    *(names[0], names[1], names[2]),
                    *(*self._scale_constants(tensor, scale), names[3]),
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
        self._scales[tensor] = scale

    def _stored(self, node: NodeProto) -> tuple[str, QuantParams]:
        """The tensor that this node stores, a ReLU after it included, and the scale it is stored with."""
        tensor = node.output[0]
        for op_type in ("Relu", "Clip"):
            activation = self._graph.only_consumer(tensor, op_type)
            if activation is not None:
                tensor = activation.output[0]
                break
        return tensor, self._scale_of(tensor)

    def _scale_of(self, tensor: str) -> QuantParams:
        readers = self._graph.consumers(tensor)
        while len(readers) == 1 and readers[0].op_type == "MaxPool":  # which stores what it reads
            readers = self._graph.consumers(readers[0].output[0])
        if any(reader.op_type in {"Concat", "Max"} for reader in readers):
            return EQUALIZED
        if tensor not in self._calibration.ranges:
            raise QuantizationError(f"the calibration knows nothing of {tensor!r}")
        low, high = self._calibration.ranges[tensor]
        producer = self._graph.producer(tensor)
        ceiling = np.inf
        if producer is not None and producer.op_type == "Clip":  # whose upper end the 8-bit ceiling has to be
            ceiling = self._graph.constants[producer.input[2]].item()
        return QuantParams.from_range(low.item() * HEADROOM, min(high.item() * HEADROOM, ceiling))

    def _expected_inputs(self, tensor: str, channels: int) -> tuple[Array, Array]:
        """A Conv input's mean per channel, in the float graph and in the integer one, as value of its codes.

        They differ where a channel's clipping threshold is no whole code: the inactive values are off by that, the
        active ones are not. Zeros where calibration knows nothing, which corrects nothing.
        """
        mean = self._calibration.means.get(tensor)
        if mean is None:
            return np.zeros(channels), np.zeros(channels)
        if len(mean) != channels:
            raise QuantizationError(f"the calibration knows {len(mean)} channels of {tensor!r}, not {channels}")
        if tensor not in self._calibration.active:
            return mean, mean
        low, high = (self._graph.value(f"{tensor}.{end}").reshape(-1) for end in ("low", "high"))
        threshold = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high, 0))  # a dead channel has neither
        rounded = _codes(threshold) / LEVELS
        # A threshold outside of [0, 1] is never met, or always: the channel then is itself, or a constant.
        reached = np.clip(threshold, 0, 1) == threshold
        idle = 1 - self._calibration.active[tensor]
        return mean, np.where(reached | (idle > 0.5), mean + (rounded - threshold) * idle, mean)

    def _clip_low(self, node: NodeProto) -> None:
        self._clip(node, 0)

    def _clip_high(self, node: NodeProto) -> None:
        self._clip(node, LEVELS)

    def _clip(self, node: NodeProto, neutral: int) -> None:
        """Max or Min with a constant per channel, on the codes; left out where it could change none of them."""
        source, output = node.input[0], node.output[0]
        self._scales[output] = self._scales[source]
        bounds = _codes(self._graph.value(node.input[1]).reshape(-1)).astype(np.uint8)
        if (bounds == neutral).all():
            self._alias[output] = self._name(source)
            return
        self._constants[f"{output}.bounds"] = bounds
        self._nodes.append(helper.make_node(node.op_type, [self._name(source), f"{output}.bounds"], [output]))

    def _concat(self, node: NodeProto) -> None:
        if any(self._scales.get(piece) != EQUALIZED for piece in node.input):
            raise QuantizationError(f"what meets in Concat {node.output[0]!r} has not one scale")
        pieces = [self._name(piece) for piece in node.input]
        self._nodes.append(helper.make_node("Concat", pieces, list(node.output), axis=3))
        self._scales[node.output[0]] = EQUALIZED

    def _max_pool(self, node: NodeProto) -> None:
        kept = {name: attribute(node, name) for name in ("kernel_shape", "strides", "pads", "dilations", "ceil_mode")}
        given = {name: value for name, value in kept.items() if value is not None}
        source = self._name(node.input[0])
        self._nodes.append(helper.make_node("NhwcMaxPool", [source], list(node.output), domain=_MICROSOFT, **given))
        self._scales[node.output[0]] = self._scales[node.input[0]]

    def _add(self, node: NodeProto) -> None:
        tensor, scale = self._stored(node)
        operands = [(self._name(name), *self._scale_constants(name, self._scales[name])) for name in node.input]
        inputs = [*operands[0], *operands[1], *self._scale_constants(tensor, scale)]
        self._nodes.append(helper.make_node("QLinearAdd", inputs, [tensor], domain=_MICROSOFT))
        self._scales[tensor] = scale

    def _mean(self, node: NodeProto) -> None:
        """The mean over the picture, in float: it reads 8 bits, and after it there is next to nothing left to do."""
        source, output = node.input[0], node.output[0]
        scale_names = self._scale_constants(source, self._scales[source])
        self._constants["spatial_axes"] = np.array([1, 2], np.int64)
        self._nodes.append(
            helper.make_node("DequantizeLinear", [self._name(source), *scale_names], [f"{output}.float"])
        )
        self._nodes.append(helper.make_node("ReduceMean", [f"{output}.float", "spatial_axes"], [output], keepdims=0))
        known = self._calibration.means.get(source, np.zeros(1))
        real, integer = self._expected_inputs(source, len(known))
        if (real != integer).any():
            self._constants[f"{output}.correction"] = (real - integer).astype(np.float32)
            self._nodes[-1].output[0] = f"{output}.raw"
            self._nodes.append(helper.make_node("Add", [f"{output}.raw", f"{output}.correction"], [output]))

    def _flatten(self, node: NodeProto) -> None:
        """Nothing to do: the mean is `[N, C]` already."""
        if node.input[0] in self._scales:
            raise QuantizationError(f"{node.op_type} {node.output[0]!r} flattens a picture, not its mean")
        self._alias[node.output[0]] = self._name(node.input[0])

    def _gemm(self, node: NodeProto) -> None:
        """The classifier, in float: a thousandth of the work. Its weights are stored small and widened at load."""
        if attribute(node, "transB", 0) != 1:
            raise QuantizationError(f"Gemm {node.output[0]!r} has its weights the other way round")
        weights, bias = self._graph.constants[node.input[1]], self._graph.bias(node)
        output = node.output[0]
        stored, wide = f"{output}.weight", f"{output}.weight32"
        self._constants[f"{output}.bias"] = bias.astype(np.float32)
        if self._small_classifier:
            steps = np.maximum(np.abs(weights).max(1, keepdims=True), SMALLEST_SCALE) / 127
            self._constants[stored] = np.rint(weights / steps).astype(np.int8)
            self._constants[f"{output}.weight_step"] = steps.astype(np.float32)
            self._nodes.append(helper.make_node("Cast", [stored], [f"{output}.codes"], to=TensorProto.FLOAT))
            self._nodes.append(helper.make_node("Mul", [f"{output}.codes", f"{output}.weight_step"], [wide]))
        else:
            self._constants[stored] = weights.astype(np.float16)
            self._nodes.append(helper.make_node("Cast", [stored], [wide], to=TensorProto.FLOAT))
        inputs = [self._name(node.input[0]), wide, f"{output}.bias"]
        self._nodes.append(helper.make_node("Gemm", inputs, [output], transB=1))

    def _name(self, tensor: str) -> str:
        return self._alias.get(tensor, tensor)

    def _scale_constants(self, tensor: str, scale: QuantParams) -> tuple[str, str]:
        label = f"step.{scale.step:.9g}.{scale.zero_point}"
        self._constants[label] = np.array(scale.step, np.float32)
        self._constants[f"zero.{scale.zero_point}"] = np.array(scale.zero_point, np.uint8)
        return label, f"zero.{scale.zero_point}"

    def _to_model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes,
            self._model.graph.name,
            list(self._model.graph.input),
            list(self._model.graph.output),
            [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in self._constants.items()],
        )
        opsets = [*self._model.opset_import, helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self._model.ir_version)
        model.producer_name, model.producer_version = self._model.producer_name, self._model.producer_version
        model.metadata_props.extend(self._model.metadata_props)
        return model


def _codes(values: Array) -> Array:
    """Equalised values as codes, 0 to 255."""
    codes: Array = np.rint(np.clip(values, 0, 1) * LEVELS)
    return codes


def _summed(weights: Array, means: Array, group: int) -> Array:
    """What a Conv without padding makes of constant channels: `[out]`."""
    totals = weights.sum((2, 3))
    per_group = means.reshape(group, -1)
    summed: Array = np.einsum("goi,gi->go", totals.reshape(group, -1, totals.shape[1]), per_group).reshape(-1)
    return summed
