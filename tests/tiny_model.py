"""A 12 KB classifier for tests that need a model file but no meaningful labels. Its logits follow from the mean colour.

python -m tests.tiny_model     writes tests/data/tiny.onnx and three.onnx again (in the export environment)
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).parent / "data" / "tiny.onnx"
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
THREE_CLASSES_CARD = {**CARD, "name": "three", "class_count": 3}


def tiny_model(card: dict[str, Any] = CARD) -> bytes:
    """Returns the serialized model, the same bytes each time.

    Args:
        card: The model card, stored in the metadata as the export stores it.
    """
    from onnx import TensorProto, helper, numpy_helper

    classes = card["class_count"]
    weight = np.random.default_rng(0).standard_normal((3, classes)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["input"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["colour"]),
            helper.make_node("MatMul", ["colour", "weight"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, producer_name="tests")
    helper.set_model_props(model, {key: json.dumps(value) for key, value in card.items()})
    return bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    PATH.write_bytes(tiny_model())
    THREE_CLASSES.write_bytes(tiny_model(THREE_CLASSES_CARD))
