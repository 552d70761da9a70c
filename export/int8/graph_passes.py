"""Passes that prepare a DenseNet's float graph for 8 bits without changing an answer.

Each pass changes one graph in place and leaves alone what it does not recognise, so that other networks stay as they
are. `tests/export/test_graph_passes.py` holds each to max |Δ logit| ≤ 1e-3.

Channel equalization follows Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction". In a DenseNet it is exact for the inputs of Concats, because only BatchNorms read them.
"""

from typing import Final

import numpy as np
from onnx import NodeProto, helper

from export.int8.calibration import Ranges
from export.onnx_graph import Array, Graph, attribute, concat_inputs

# Room above the largest value seen in calibration, for images that exceed it: more room costs resolution, less clips.
# Between 1.2 and 1.4 the mean error on held-out photographs is flat and the largest error falls.
HEADROOM: Final = 1.3
_SMALLEST_RANGE: Final = 1e-3  # of the tensor's widest; a channel that hardly moves needs no resolution

Affine = tuple[Array, Array]  # the scale and shift of each channel, `[C]` each


def equalize_channels(graph: Graph, ranges: Ranges) -> bool:
    """Scales every channel that enters a Concat to [0, 1] in the Conv that makes it, and back in the BatchNorms.

    Only the part of a channel's range above the lowest ReLU threshold of its readers is kept: below it, all of them
    give zero.

    Args:
        graph: is changed in place.
        ranges: per-channel minimum and maximum of the tensors that BatchNorms read.

    Returns:
        Whether the channels were scaled: not if a range is missing or not only BatchNorms read the tensors.
    """
    readers = _channel_readers(graph)
    if not readers or not ranges.keys() >= readers.keys():
        return False
    intervals: dict[str, tuple[Array, Array]] = {}
    for tensor, affines in readers.items():
        low, high = ranges[tensor]
        if _passes_relu(graph, tensor):  # a ReLU clips at 0 and must clip nowhere else, whatever calibration saw
            low = np.zeros_like(low)
        low, width = _needed_interval(low, high, affines)
        intervals[tensor] = low, width
        conv = _producing_conv(graph, tensor)
        if conv is not None:
            weights, bias = graph.value(conv.input[1]), graph.bias(conv)
            graph.set_weights(conv, weights / width[:, None, None, None], (bias - low) / width)
    for node in graph.of_type("BatchNormalization"):
        pieces = concat_inputs(graph, node.input[0])
        low, width = (np.concatenate([intervals[piece][part] for piece in pieces]) for part in (0, 1))
        scale, shift = affine(graph, node)
        _set_affine(graph, node, scale * width, shift + scale * low)
    return True


def clip_batchnorms(graph: Graph) -> None:
    """Turns BatchNorm → ReLU → 1×1 Conv into a clip of each channel → Conv, also where a mean and a Gemm follow.

    With y = relu(s·x + b) and t = -b/s: y = s·max(x, t) + b where s > 0, and y = s·min(x, t) + b where s < 0. Scale and
    shift go into the Conv's weights and bias; the clip costs a comparison per value and rounds nothing in 8 bits.
    Before a Gemm they are applied to the mean, by a BatchNorm, so that the mean keeps its units: it is the embedding.
    """
    for norm in graph.of_type("BatchNormalization"):
        relu = graph.only_consumer(norm.output[0], "Relu")
        layer = None if relu is None else _linear_consumer(graph, relu.output[0])
        if relu is None or layer is None:
            continue
        scale, shift = affine(graph, norm)
        live = scale != 0
        threshold = np.where(live, -shift / np.where(live, scale, 1), 0)
        constant = np.where(live, shift, np.maximum(shift, 0))
        if layer.op_type == "Gemm":
            features = f"{layer.output[0]}.features"
            graph.replace(layer, [scale_and_shift(graph, layer.input[0], features, scale, constant), layer])
            layer.input[0] = features
        else:
            weights, bias = graph.value(layer.input[1]), graph.bias(layer)
            matrix = weights.reshape(weights.shape[0], -1)
            graph.set_weights(layer, (matrix * scale).reshape(weights.shape), bias + matrix @ constant)
        name, tensor = relu.output[0], norm.input[0]
        per_channel = (1, -1, 1, 1)
        graph.constants[f"{name}.low"] = np.where(scale > 0, threshold, -np.inf).astype(np.float32).reshape(per_channel)
        graph.constants[f"{name}.high"] = np.where(scale < 0, threshold, np.inf).astype(np.float32).reshape(per_channel)
        low = helper.make_node("Max", [tensor, f"{name}.low"], [f"{name}.above"])
        high = helper.make_node("Min", [f"{name}.above", f"{name}.high"], [name])
        graph.replace(norm, [])
        graph.replace(relu, [low, high])


def merge_average_pools(graph: Graph) -> None:
    """Turns 1×1 Conv → k×k AveragePool into one k×k Conv with stride k, which rounds once instead of twice."""
    for pool in graph.of_type("AveragePool"):
        conv = graph.producer(pool.input[0])
        kernel = attribute(pool, "kernel_shape")
        same = attribute(pool, "strides") == kernel and not any(attribute(pool, "pads", [0]))
        if conv is None or not same or not _is_pointwise(graph, conv) or len(graph.consumers(conv.output[0])) != 1:
            continue
        weights, bias = graph.value(conv.input[1]), graph.bias(conv)
        spread = np.tile(weights / np.prod(kernel), (1, 1, *kernel))
        merged = helper.make_node(
            "Conv", list(conv.input), [pool.output[0]], kernel_shape=kernel, strides=kernel, pads=[0, 0, 0, 0]
        )
        graph.set_weights(merged, spread, bias)
        graph.replace(conv, [])
        graph.replace(pool, [merged])


def chain_concats(graph: Graph) -> None:
    """Turns Concat(a, b, c) into Concat(ab, c) if Concat(a, b) exists: two long copies instead of many short ones."""
    made: dict[tuple[str, ...], str] = {}
    for concat in graph.of_type("Concat"):
        pieces = tuple(concat.input)
        longest = max((size for size in range(2, len(pieces)) if pieces[:size] in made), default=0)
        made[pieces] = concat.output[0]
        if longest:
            shorter = [made[pieces[:longest]], *pieces[longest:]]
            graph.replace(concat, [helper.make_node("Concat", shorter, list(concat.output), axis=1)])


def _channel_readers(graph: Graph) -> dict[str, list[Affine]]:
    """Returns what each BatchNorm does to the channels of each tensor that it reads, alone or through a Concat.

    Empty if something else reads one of these tensors too, because then its channels must not be scaled.
    """
    readers: dict[str, list[Affine]] = {}
    sizes: dict[str, int] = {}
    for node in graph.of_type("BatchNormalization"):
        scale, shift = affine(graph, node)
        start = 0
        for piece in concat_inputs(graph, node.input[0]):
            conv = _producing_conv(graph, piece)
            if conv is None:
                return {}
            sizes[piece] = graph.constants[conv.input[1]].shape[0]
            part = slice(start, start + sizes[piece])
            readers.setdefault(piece, []).append((scale[part], shift[part]))
            start += sizes[piece]
    allowed = {"Concat", "BatchNormalization"}
    if any(node.op_type not in allowed for piece in readers for node in graph.consumers(piece)):
        return {}
    return readers


def _needed_interval(low: Array, high: Array, affines: list[Affine]) -> tuple[Array, Array]:
    """Returns the lower end and the width of the range that readers need of each channel, `[C]`, headroom included."""
    low, high = low.astype(np.float64), high.astype(np.float64)
    needed_low, needed_high = high.copy(), low.copy()
    for scale, shift in affines:
        threshold = np.where(scale == 0, low, -shift / np.where(scale == 0, 1, scale))
        needed_low = np.minimum(needed_low, np.where(scale > 0, np.maximum(threshold, low), low))
        needed_high = np.maximum(needed_high, np.where(scale < 0, np.minimum(threshold, high), high))
    width = (needed_high - needed_low) * HEADROOM
    idle = width < _SMALLEST_RANGE * max(float(width.max()), 1e-6)
    return np.where(idle, low, needed_low), np.where(idle, max(float(width.max()), 1e-6), width)


def _producing_conv(graph: Graph, tensor: str) -> NodeProto | None:
    """Returns the Conv that makes these channels, also through ReLU and pooling, which treat all channels alike."""
    node = graph.producer(tensor)
    while node is not None and node.op_type in {"Relu", "MaxPool", "AveragePool"}:
        node = graph.producer(node.input[0])
    return node if node is not None and node.op_type == "Conv" else None


def _passes_relu(graph: Graph, tensor: str) -> bool:
    node = graph.producer(tensor)
    while node is not None and node.op_type in {"MaxPool", "AveragePool"}:
        node = graph.producer(node.input[0])
    return node is not None and node.op_type == "Relu"


def _linear_consumer(graph: Graph, tensor: str) -> NodeProto | None:
    """Returns the 1×1 Conv that alone reads `tensor`, or the Gemm that reads its mean over height and width."""
    conv = graph.only_consumer(tensor, "Conv")
    if conv is not None:
        return conv if _is_pointwise(graph, conv) else None
    mean = graph.only_consumer(tensor, "ReduceMean")
    flat = None if mean is None else graph.only_consumer(mean.output[0], "Reshape")
    return None if flat is None else graph.only_consumer(flat.output[0], "Gemm")


def _is_pointwise(graph: Graph, node: NodeProto) -> bool:
    if node.op_type != "Conv" or attribute(node, "group", 1) != 1:
        return False
    kernel = graph.constants[node.input[1]].shape[2:]
    return kernel == (1, 1) and set(attribute(node, "strides", [1, 1])) == {1} and not any(attribute(node, "pads", [0]))


def affine(graph: Graph, norm: NodeProto) -> Affine:
    """Returns a BatchNormalization as scale·x + shift."""
    gamma, beta, mean, variance = (graph.value(name) for name in norm.input[1:5])
    scale = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    return scale, beta - mean * scale


def scale_and_shift(graph: Graph, source: str, output: str, scale: Array, shift: Array) -> NodeProto:
    """Returns a BatchNormalization that computes scale·x + shift; its constants go into the graph."""
    norm = helper.make_node("BatchNormalization", [source, *[""] * 4], [output], epsilon=0.0)
    _set_affine(graph, norm, scale, shift)
    return norm


def _set_affine(graph: Graph, norm: NodeProto, scale: Array, shift: Array) -> None:
    epsilon = attribute(norm, "epsilon", 1e-5)
    values = (scale, shift, np.zeros_like(scale), np.full_like(scale, 1 - epsilon))
    for position, (kind, value) in enumerate(zip(("scale", "shift", "mean", "variance"), values, strict=True), start=1):
        name = f"{norm.output[0]}.{kind}"
        graph.constants[name] = value.astype(np.float32)
        norm.input[position] = name
