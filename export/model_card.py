"""The model card: what a model file says about itself in its ONNX metadata, which the server shows at `GET /model`."""

import json
from typing import Any, Final

import onnx
import onnxruntime
import torch
import torchvision

from export.architectures import Architecture
from export.engines import CPU, ENTRY
from export.evaluate import Comparison
from export.int8.pipeline import Int8Result
from export.onnx_graph import EMBEDDING, FEATURES
from export.weights import Weights
from serve.model.labels import Label

_KEPT: Final = (FEATURES, EMBEDDING)
_DATATYPES: Final = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.UINT8: "UINT8"}


def make_card(
    model: onnx.ModelProto, name: str, architecture: Architecture, weights: Weights, parity: dict[str, Any]
) -> dict[str, Any]:
    """Returns the entries that fp32 and int8 have in common.

    Args:
        model: the exported fp32 model.
        name: what answers call it.
        architecture: what it was exported from.
        weights: what it was exported with.
        parity: the figures of the parity check.
    """
    spec = architecture.preprocessing
    return {
        "name": name,
        "architecture": architecture.name,
        "weights": {"source": weights.source, "sha256": weights.sha256, "licence": weights.licence},
        "input_size": [3, spec.crop, spec.crop],
        **spec.to_card(),
        "class_count": model.graph.output[0].type.tensor_type.shape.dim[1].dim_value,
        "opset": next(entry.version for entry in model.opset_import if entry.domain == ""),
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "parity": parity,
    }


def answers_card(labels: tuple[Label, ...] | None, activation: str) -> dict[str, Any]:
    """Returns the entries that tell what logits mean: labels, ids where all labels have them, and the activation."""
    card: dict[str, Any] = {} if activation == "softmax" else {"activation": activation}
    if labels is not None:
        card["labels"] = [label.name for label in labels]
        if all(label.imagenet_id for label in labels):
            card["ids"] = [label.imagenet_id for label in labels]
    return card


def fp32_card(card: dict[str, Any], comparison: Comparison | None, photographs: str) -> dict[str, Any]:
    """Returns the fp32 model's card, with its accuracy on the set of photographs if it was measured."""
    accuracy = comparison and {"set": photographs, **comparison.reference_card()}
    return {**card, "variant": "fp32", "accuracy": accuracy}


def int8_card(card: dict[str, Any], int8: Int8Result, photographs: str) -> dict[str, Any]:
    """Returns an int8 model's card, with its calibration and its accuracy on the set of photographs.

    A model for another engine than `CPU` has that engine's name, and how far its answers are from the `CPU` model's.
    """
    used = int8.calibration and {
        "source": int8.calibration.source,
        "photographs": len(int8.calibration.photographs),
    }
    accuracy = int8.comparison and {"set": photographs, **int8.comparison.to_card()}
    if accuracy and int8.from_integers:
        accuracy["integer_model"] = int8.from_integers.difference_card()
    engine = {} if int8.engine == CPU else {ENTRY: int8.engine}
    return {**card, "variant": "int8", **engine, "calibration": used, "accuracy": accuracy}


def serialize(model: onnx.ModelProto, card: dict[str, Any]) -> bytes:
    """Writes the card into the model's metadata, each value as JSON, and returns the model file's content.

    The card also gets what the model takes, in the words of the Open Inference Protocol, with -1 for any number; and
    what the metadata already says of feature maps and embeddings, null for no embeddings.
    """
    taken = model.graph.input[0].type.tensor_type
    shape = [dimension.dim_value or -1 for dimension in taken.shape.dim]
    measured = {entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key in _KEPT}
    card = {EMBEDDING: None, **card, **measured, "input": {"datatype": _DATATYPES[taken.elem_type], "shape": shape}}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in sorted(card.items())})
    return bytes(model.SerializeToString(deterministic=True))
