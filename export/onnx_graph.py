"""An ONNX graph that can be changed: nodes in order, constants by name, producers and consumers of tensors."""

import copy
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

Array = npt.NDArray[Any]
# Metadata entries that a model has before its card: `name_features` and `measure_embeddings` write them.
FEATURES: Final = "features"
EMBEDDING: Final = "embedding"


class Graph:
    """A copy of a model's graph, whose only output is the model's first one, the logits.

    Other outputs are feature maps and what belongs to them, which passes change; `name_features` finds them again.

    inputs: of the graph. nodes: in topological order. constants: name → array. opsets: the operator sets that the nodes
    are from.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self.inputs = list(model.graph.input)
        self.nodes = [copy.deepcopy(node) for node in model.graph.node]
        self.constants: dict[str, Array] = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        self.opsets = list(model.opset_import)

    def empty_copy(self) -> "Graph":
        """Returns a graph with the same inputs, outputs and metadata, and no nodes or constants."""
        empty = copy.copy(self)
        empty.nodes, empty.constants, empty.opsets = [], {}, list(self.opsets)
        return empty

    def producer(self, tensor: str) -> NodeProto | None:
        """Returns the node that outputs `tensor`; None for the graph's input and for constants."""
        return next((node for node in self.nodes if tensor in node.output), None)

    def consumers(self, tensor: str) -> list[NodeProto]:
        """Returns the nodes that read `tensor`."""
        return [node for node in self.nodes if tensor in node.input]

    def only_consumer(self, tensor: str, op_type: str) -> NodeProto | None:
        """Returns the node that reads `tensor` if there is only one and it has this type."""
        readers = self.consumers(tensor)
        return readers[0] if len(readers) == 1 and readers[0].op_type == op_type else None

    def of_type(self, *op_types: str) -> list[NodeProto]:
        """Returns the nodes of these types, in order."""
        return [node for node in self.nodes if node.op_type in op_types]

    def value(self, name: str) -> Array:
        """Returns a constant in double precision, in which constants are combined before they are stored in single."""
        return self.constants[name].astype(np.float64)

    def bias(self, conv: NodeProto) -> Array:
        """Returns the bias of a Conv or Gemm, zeros if it has none."""
        if len(conv.input) > 2:
            return self.value(conv.input[2])
        return np.zeros(self.constants[conv.input[1]].shape[0])

    def widths(self) -> dict[str, int]:
        """Returns the width of every tensor `[N, C, height, width]`, in pixels."""
        values = onnx.shape_inference.infer_shapes(self.to_model()).graph.value_info
        shapes = {value.name: value.type.tensor_type.shape.dim for value in values}
        return {name: shape[3].dim_value for name, shape in shapes.items() if len(shape) == 4}

    def set_weights(self, conv: NodeProto, weights: Array, bias: Array) -> None:
        """Gives a Conv or Gemm new weights and a new bias, as constants that no other node reads."""
        for position, (kind, values) in enumerate((("weight", weights), ("bias", bias)), start=1):
            name = f"{conv.output[0]}.{kind}"
            self.constants[name] = values.astype(np.float32)
            if len(conv.input) > position:
                conv.input[position] = name
            else:
                conv.input.append(name)

    def replace(self, old: NodeProto, new: Iterable[NodeProto]) -> None:
        """Puts other nodes, or none, in a node's place."""
        position = next(index for index, node in enumerate(self.nodes) if node is old)
        self.nodes[position : position + 1] = new

    def to_model(self) -> onnx.ModelProto:
        """Returns the graph as a model; constants that no node reads are left out."""
        read = {name for node in self.nodes for name in node.input}
        graph = helper.make_graph(
            self.nodes,
            self._model.graph.name,
            self.inputs,
            self._model.graph.output[:1],
            [
                numpy_helper.from_array(np.asarray(array, order="C"), name)
                for name, array in self.constants.items()
                if name in read
            ],
        )
        model = helper.make_model(graph, opset_imports=self.opsets, ir_version=self._model.ir_version)
        model.producer_name, model.producer_version = self._model.producer_name, self._model.producer_version
        model.metadata_props.extend(
            entry for entry in self._model.metadata_props if entry.key not in {FEATURES, EMBEDDING}
        )
        return model


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Returns an attribute's value, or `default` if the node does not have it."""
    found = next((entry for entry in node.attribute if entry.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def concat_inputs(graph: Graph, tensor: str) -> list[str]:
    """Returns the tensors that a Concat joins, through Concats of Concats too; `tensor` if no Concat makes it."""
    node = graph.producer(tensor)
    if node is None or node.op_type != "Concat":
        return [tensor]
    return [piece for part in node.input for piece in concat_inputs(graph, part)]
