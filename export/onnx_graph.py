"""An ONNX graph that can be rewritten: nodes in order, constants by name, producers and consumers.

Steps of the pipeline take a model, make a `Graph` of it, change that, and give back a model; the one they took is left
as it was. No error leaves this module.
"""

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

Array = npt.NDArray[Any]


class Graph:
    """nodes: in an order in which each follows its inputs. constants: name → array."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self.nodes = [copy.deepcopy(node) for node in model.graph.node]
        self.constants: dict[str, Array] = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}

    def producer(self, tensor: str) -> NodeProto | None:
        """The node whose output `tensor` is; None for the graph's input and for constants."""
        return next((node for node in self.nodes if tensor in node.output), None)

    def consumers(self, tensor: str) -> list[NodeProto]:
        """The nodes that read `tensor`."""
        return [node for node in self.nodes if tensor in node.input]

    def only_consumer(self, tensor: str, op_type: str) -> NodeProto | None:
        """The one node that reads `tensor`, where there is one and it is of this type."""
        readers = self.consumers(tensor)
        return readers[0] if len(readers) == 1 and readers[0].op_type == op_type else None

    def of_type(self, *op_types: str) -> list[NodeProto]:
        """The nodes of these types, in order."""
        return [node for node in self.nodes if node.op_type in op_types]

    def value(self, name: str) -> Array:
        """A constant in double precision: they are combined in it and stored in single."""
        return self.constants[name].astype(np.float64)

    def bias(self, conv: NodeProto) -> Array:
        """A Conv's bias, zeros where it has none."""
        if len(conv.input) > 2:
            return self.value(conv.input[2])
        return np.zeros(self.constants[conv.input[1]].shape[0])

    def set_weights(self, conv: NodeProto, weights: Array, bias: Array) -> None:
        """Give a Conv or Gemm other weights, under names of its own."""
        for position, (kind, values) in enumerate((("weight", weights), ("bias", bias)), start=1):
            name = f"{conv.output[0]}.{kind}"
            self.constants[name] = values.astype(np.float32)
            if len(conv.input) > position:
                conv.input[position] = name
            else:
                conv.input.append(name)

    def replace(self, old: NodeProto, new: Iterable[NodeProto]) -> None:
        """Put other nodes, or none, in a node's place."""
        position = next(index for index, node in enumerate(self.nodes) if node is old)
        self.nodes[position : position + 1] = new

    def to_model(self) -> onnx.ModelProto:
        """The model as it is now, with the constants that are still read."""
        read = {name for node in self.nodes for name in node.input}
        graph = helper.make_graph(
            self.nodes,
            self._model.graph.name,
            list(self._model.graph.input),
            list(self._model.graph.output),
            [
                numpy_helper.from_array(np.ascontiguousarray(array), name)
                for name, array in self.constants.items()
                if name in read
            ],
        )
        model = helper.make_model(
            graph, opset_imports=list(self._model.opset_import), ir_version=self._model.ir_version
        )
        model.producer_name, model.producer_version = self._model.producer_name, self._model.producer_version
        model.metadata_props.extend(self._model.metadata_props)
        return model


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value, as onnx gives it."""
    found = next((entry for entry in node.attribute if entry.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def concat_pieces(graph: Graph, tensor: str) -> list[str]:
    """The tensors that a Concat over channels is made of, through Concats of Concats; itself where it is none."""
    node = graph.producer(tensor)
    if node is None or node.op_type != "Concat":
        return [tensor]
    return [piece for part in node.input for piece in concat_pieces(graph, part)]
