"""A small network with what MobileNets, EfficientNets and ResNets have and DenseNets lack, built as an ONNX graph.

Depthwise, dilated and strided Convs, with and without bias and padding, ReLU6, a residual sum of values of both signs,
GlobalAveragePool and Flatten. Drawn by numpy and rounded, the same on every CPU.
"""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.small_densenet import CLASSES, SIDE, Array, images, rounded


def build() -> onnx.ModelProto:
    """Build the model: input FP32 `[N, 3, SIDE, SIDE]`, output FP32 `[N, CLASSES]`."""
    random = np.random.default_rng(4)
    constants: dict[str, Array] = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    nodes: list[NodeProto] = []

    def conv(
        name: str, source: str, shape: tuple[int, ...], bias: bool = True, gain: float = 2.0, **options: Any
    ) -> str:
        weights = rounded(random.normal(0, (gain / np.prod(shape[1:])) ** 0.5, shape))
        constants[f"{name}.w"] = weights.astype(np.float32)
        inputs = [source, f"{name}.w"]
        if bias:
            constants[f"{name}.b"] = rounded(random.normal(0, 0.3, shape[0])).astype(np.float32)
            inputs.append(f"{name}.b")
        nodes.append(helper.make_node("Conv", inputs, [name], **options))
        return name

    def then(op_type: str, *inputs: str, **options: Any) -> str:
        name = f"{inputs[0]}.{op_type.lower()}"
        nodes.append(helper.make_node(op_type, list(inputs), [name], **options))
        return name

    stem = conv("stem", "input", (12, 3, 3, 3), gain=12.0, strides=[2, 1], pads=[1, 1, 1, 1])
    stem = then("Clip", stem, "zero", "six")  # reaches 6
    deep = conv("depthwise", stem, (12, 1, 3, 3), bias=False, group=12, pads=[0, 1, 2, 1])
    deep = then("Clip", deep, "zero", "six")
    deep = conv("project", deep, (12, 12, 1, 1))
    both = then("Add", deep, stem)
    wide = conv("dilated", then("Relu", both), (16, 12, 3, 2), dilations=[2, 3])
    wide = then("MaxPool", then("Relu", wide), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    last = conv("grouped", wide, (20, 8, 1, 1), group=2)
    flat = then("Flatten", then("GlobalAveragePool", last), axis=1)
    constants["matrix"] = rounded(random.normal(0, 0.2, (CLASSES, 20)) * np.linspace(0.5, 3, CLASSES)[:, None]).astype(
        np.float32
    )
    constants["offset"] = np.zeros(CLASSES, np.float32)
    nodes.append(helper.make_node("Gemm", [flat, "matrix", "offset"], ["logits"], transB=1))
    graph = helper.make_graph(
        nodes,
        "small_mobilenet",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="tests")
    helper.set_model_props(model, {"name": "small_mobilenet"})
    usual = ort.InferenceSession(model.SerializeToString()).run(None, {"input": images(40, 5)})[0].mean(0)
    offset = next(entry for entry in model.graph.initializer if entry.name == "offset")
    offset.CopyFrom(
        numpy_helper.from_array(rounded(-usual).astype(np.float32), "offset")
    )  # so that no class always wins
    return model
