"""A 12 KB classifier for tests that need a model file but no meaningful labels. Its logits follow from the mean colour.

One takes normalised floats, as an fp32 model does, and one the pixels, as an int8 model does, for the same logits. Both
name their feature maps, the mean colours of 7 × 7 squares, as does a third of three classes that are colours.

python -m tests.tiny_model     writes the files of tests/data again (in the export environment)
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).parent / "data" / "tiny.onnx"
PIXELS = PATH.with_name("tiny_pixels.onnx")
THREE_CLASSES = PATH.with_name("three.onnx")
CARD: dict[str, Any] = {
    "name": "tiny",
    "variant": "fp32",
    "input_size": [3, 224, 224],
    "resize": 256,
    "interpolation": "bilinear",
    "crop": 224,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "class_count": 1000,
}
MAPPED = PATH.with_name("mapped.onnx")
THREE_CLASSES_CARD = {**CARD, "name": "three", "class_count": 3}
MAPPED_CARD = {
    **CARD,
    "name": "mapped",
    "variant": "int8",
    "class_count": 3,
    "labels": ["red", "green", "blue"],
    "embedding": {"length": 3, "norm": 1.0},
}


def tiny_model(card: dict[str, Any] = CARD, pixels: bool = False, features: bool = True) -> bytes:
    """Returns the serialized model, the same bytes each time.

    Args:
        card: The model card, stored in the metadata as the export stores it.
        pixels: Whether it takes 8-bit RGB `[N, 224, 224, 3]`.
        features: Whether its metadata names its feature maps, the mean colours of 7 × 7 parts.
    """
    from onnx import TensorProto, helper, numpy_helper

    from export.features import name_features

    constants = {}
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 224, 224])]
    before = []
    if pixels:
        inputs = [helper.make_tensor_value_info("input", TensorProto.UINT8, ["batch", 224, 224, 3])]
        mean, std = (np.array(card[key], np.float32)[:, None, None] for key in ("mean", "std"))
        constants = {"full": np.array(255, np.float32), "mean": mean, "std": std}
        before = [
            helper.make_node("Cast", ["input"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["values"], ["planes"], perm=[0, 3, 1, 2]),
            helper.make_node("Div", ["planes", "full"], ["unit"]),
            helper.make_node("Sub", ["unit", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["normalised"]),
        ]
    classes = card["class_count"]
    weight = np.random.default_rng(0).standard_normal((3, classes)).astype(np.float32).T
    graph = helper.make_graph(
        [
            *before,
            helper.make_node(
                "AveragePool",
                ["normalised" if pixels else "input"],
                ["maps"],
                kernel_shape=[32, 32],
                strides=[32, 32],
            ),
            helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["colour"]),
            helper.make_node("Gemm", ["colour", "weight"], ["logits"], transB=1),
        ],
        "tiny",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(values, name) for name, values in {**constants, "weight": weight}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="tests")
    helper.set_model_props(model, {key: json.dumps(value) for key, value in card.items()})
    if features:
        name_features(model)
    return bytes(model.SerializeToString(deterministic=True))


def mapped_model() -> bytes:
    """Returns a serialized model that names its feature maps, the same bytes each time.

    It takes 8-bit RGB `[N, 224, 224, 3]`. The maps are FP32 `[N, 3, 7, 7]`, normalised colours; each class is a colour.
    """
    from onnx import helper, load_model_from_string, numpy_helper

    from export.features import name_features

    model = load_model_from_string(tiny_model(MAPPED_CARD, pixels=True, features=False))
    graph = model.graph
    del graph.node[-4:], graph.initializer[-1:]
    graph.node.extend(
        [
            helper.make_node("AveragePool", ["normalised"], ["squares"], kernel_shape=[32, 32], strides=[32, 32]),
            helper.make_node("GlobalAveragePool", ["squares"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["colour"]),
            helper.make_node("Gemm", ["colour", "weight", "bias"], ["logits"], transB=1),
        ]
    )
    weight = 1.5 * np.eye(3, dtype=np.float32) - 0.5
    for values, name in ((weight, "weight"), (np.array([0.25, 0, -0.25], np.float32), "bias")):
        graph.initializer.append(numpy_helper.from_array(values, name))
    name_features(model)
    return bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    PATH.write_bytes(tiny_model())
    PIXELS.write_bytes(tiny_model({**CARD, "variant": "int8"}, pixels=True))
    THREE_CLASSES.write_bytes(tiny_model(THREE_CLASSES_CARD, features=False))
    MAPPED.write_bytes(mapped_model())
