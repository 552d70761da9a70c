"""Names a network's feature maps and its last layer in the model file, so that the server can tell where it looked.

The network has to end in a mean over all places and one linear layer. No node is added: the maps, and the constants of
the last layer, become outputs of the graph beside the logits. onnxruntime returns an output, be it a constant, only if
asked for it, so these cost nothing otherwise, and the file holds the weights once. Without that, the server would have
to parse protobuf to find them. The metadata entry `features` says what is what; docs/model-files.md describes it.
"""

import json
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from export.evaluate import takes_pixels
from export.onnx_graph import FEATURES, Graph, attribute
from serve.errors import ModelError
from serve.model.features import Features

# PyTorch's exporter writes the change of a layout in memory as a Gather, which may also be a choice of some values.
_RESHAPING: Final = {"Reshape", "Flatten", "Squeeze", "Identity", "Dropout", "Gather"}
_LAYOUTS: Final[dict[tuple[int, ...], str]] = {(2, 3): "NCHW", (1, 2): "NHWC"}  # by the axes of the mean


def name_features(model: onnx.ModelProto) -> bool:
    """Makes the feature maps and the last layer's constants outputs of a model, and names them in its metadata.

    Args:
        model: fp32, int8 or QDQ, whose only output is the logits; is changed in place.

    Returns:
        Whether the network ends in a mean and one linear layer; other models stay as they are.
    """
    graph, (logits,) = Graph(model), model.graph.output
    entry = _find(graph, logits.name)
    if not entry:
        return False
    outputs = _outputs(graph, entry, logits.type.tensor_type.shape.dim[0].dim_param)
    model.graph.output.extend(outputs)
    if not _adds_up(model, entry):
        del model.graph.output[1:]
        return False
    model.metadata_props.add(key=FEATURES, value=json.dumps(entry))
    return True


def _outputs(graph: Graph, entry: dict[str, Any], batch: str) -> list[ValueInfoProto]:
    """Returns the outputs that the entry names; onnxruntime finds the maps' height and width itself."""
    shape: list[str | int | None] = [batch, None, None, None]
    shape[entry["layout"].index("C")] = graph.constants[entry["weight"]].shape[1]
    maps = helper.make_tensor_value_info(
        entry["maps"], TensorProto.UINT8 if "step" in entry else TensorProto.FLOAT, shape
    )
    outputs = [maps]
    for values, name in ((graph.constants.get(name), name) for name in entry.values()):
        if values is not None:
            kind = helper.np_dtype_to_tensor_dtype(values.dtype)
            outputs.append(helper.make_tensor_value_info(name, kind, values.shape))
    return outputs


def _adds_up(model: onnx.ModelProto, entry: dict[str, Any]) -> bool:
    """Returns whether maps, weights and biases give the logits of an image of noise."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    noise = np.random.default_rng(0).integers(0, 256, [1, *image.shape[1:]])
    batch = noise.astype(np.uint8) if takes_pixels(session) else (noise / 128 - 1).astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    try:
        Features.from_entry(entry, names, lambda wanted: session.run(wanted, {image.name: batch}))
    except ModelError:
        return False
    return True


def _find(graph: Graph, logits: str) -> dict[str, Any]:
    """Returns the metadata entry; empty if the network ends otherwise."""
    gemm = graph.producer(logits)
    if gemm is None or gemm.op_type != "Gemm":
        return {}
    last_layer = _last_layer(graph, gemm)
    node, affine = _before_reshaping(graph, gemm.input[0]), {}
    if node is not None and _is_scale_and_shift(graph, node):
        affine = {"scale": node.input[1], "shift": node.input[2]}
        node = _before_reshaping(graph, node.input[0])
    layout = None if node is None else _LAYOUTS.get(_averaged_axes(graph, node))
    if not last_layer or node is None or layout is None or graph.producer(node.input[0]) is None:
        return {}
    return {**_stored_maps(graph, node.input[0]), "layout": layout, **affine, **last_layer}


def _stored_maps(graph: Graph, maps: str) -> dict[str, Any]:
    """Returns the entry's part about the maps; in 8 bits where they are, because onnxruntime would widen them twice."""
    node = graph.producer(maps)
    if node is None or node.op_type != "DequantizeLinear":
        return {"maps": maps}
    step, zero_point = (graph.constants[name].item() for name in node.input[1:3])
    return {"maps": node.input[0], "step": step, "zero_point": zero_point}


def _last_layer(graph: Graph, gemm: NodeProto) -> dict[str, str]:
    """Returns the names of a Gemm's constants, as they are stored; empty if they are none, or if it does more."""
    names = dict(zip(("weight", "bias"), gemm.input[1:], strict=False))
    factors = {attribute(gemm, name, 1.0) for name in ("alpha", "beta")}
    if factors != {1.0} or attribute(gemm, "transA", 0) or not attribute(gemm, "transB", 0):
        return {}
    widened = graph.producer(names["weight"])
    if widened is not None and widened.op_type == "Mul":  # 8 bits with a scale for each class
        names["weight"], names["weight_scale"] = widened.input
        widened = graph.producer(names["weight"])
    if widened is not None and widened.op_type == "Cast":
        names["weight"] = widened.input[0]
    return names if graph.constants.keys() >= set(names.values()) else {}


def _before_reshaping(graph: Graph, tensor: str) -> NodeProto | None:
    """Returns the node that computes the values of a tensor, whatever changes its shape after it."""
    node = graph.producer(tensor)
    while node is not None and node.op_type in _RESHAPING:
        node = graph.producer(node.input[0])
    return node


def _is_scale_and_shift(graph: Graph, node: NodeProto) -> bool:
    """Returns whether a node is the BatchNormalization that `clip_batchnorms` puts after a mean."""
    if node.op_type != "BatchNormalization":
        return False
    mean, variance = (graph.constants[name] for name in node.input[3:5])
    return not mean.any() and bool((variance == 1).all()) and attribute(node, "epsilon") == 0


def _averaged_axes(graph: Graph, node: NodeProto) -> tuple[int, ...]:
    """Returns the axes of four that a node takes the mean over; none for nodes that take none."""
    if node.op_type == "GlobalAveragePool":
        return (2, 3)
    if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in graph.constants:
        return ()
    return tuple(sorted(int(axis) % 4 for axis in graph.constants[node.input[1]]))
