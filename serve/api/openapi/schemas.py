"""The objects that requests and answers are made of, as JSON schemas for the OpenAPI document.

No error leaves this module.
"""

from typing import Any, Final

Json = dict[str, Any]

_TEXT: Final = {"type": "string"}
_SHAPE: Final = {"type": "array", "items": {"type": "integer", "minimum": -1}, "minItems": 1}
# A PNG of one pixel.
_PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
_RETRIEVER: Final = {"imagenet_id": "n02099601", "label": "golden_retriever", "probability": 0.9312}
# Examples; the answers are of a server whose model has no name yet.
PREDICTION: Final = {**_RETRIEVER, "top_k": [_RETRIEVER]}
INFERENCE_REQUEST: Final = {
    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [_PIXEL]}],
    "outputs": [{"name": "logits", "parameters": {"classification": 2}}],
}
INFERENCE_ANSWER: Final = {
    "model_version": "1",
    "outputs": [
        {
            "name": "logits",
            "datatype": "BYTES",
            "shape": [1, 2],
            "data": ["15.6228256:285:Egyptian_cat", "14.5257072:281:tabby"],
        }
    ],
}


def schemas(side: int, class_count: int, max_rows: int) -> Json:
    """All of them, by name. side: of the model's input, pixels. max_rows: pictures or tensors a request may have."""
    scored = {
        "imagenet_id": {"type": "string", "description": "WordNet id, such as n02099601."},
        "label": _TEXT,
        "probability": {"type": "number", "minimum": 0, "maximum": 1, "description": "Softmax over all classes."},
    }
    prediction = {
        **scored,
        "top_k": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/Scored"},
            "minItems": 1,
            "maxItems": class_count,
            "description": "In falling order; the first is the prediction itself.",
        },
        "model": _TEXT,
    }
    problem = {
        "type": {"type": "string", "format": "uri-reference"},
        "title": _TEXT,
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "What was wrong, and the limit it broke."},
    }
    rows = {"type": "integer", "minimum": 1, "maximum": max_rows}
    taken = {
        "name": {"type": "string", "enum": ["input", "image"]},
        "datatype": {"type": "string", "enum": ["FP32", "BYTES"], "description": "FP32 for input, BYTES for image."},
        "shape": {
            "description": f"[N, 3, {side}, {side}] for input, [N] for image.",
            "oneOf": [
                {"type": "array", "prefixItems": [rows, {"const": 3}, {"const": side}, {"const": side}], **_length(4)},
                {"type": "array", "prefixItems": [rows], **_length(1)},
            ],
        },
        "data": {"type": "array", "items": {}, "description": "Numbers, nested or in a row; for image base64 strings."},
        "parameters": _record({"binary_data_size": {"type": "integer", "minimum": 0}}),
    }
    wanted = {
        "name": {"const": "logits"},
        "parameters": _record(
            {
                "classification": {"type": "integer", "minimum": 1, "maximum": class_count},
                "binary_data": {"type": "boolean"},
            }
        ),
    }
    given = {
        "name": {"const": "logits"},
        "datatype": {"type": "string", "enum": ["FP32", "BYTES"]},
        "shape": _SHAPE,
        "data": {"type": "array", "items": {"type": ["number", "string"]}},
        "parameters": _record({"binary_data_size": {"type": "integer", "minimum": 0}}),
    }
    described = _record({"name": _TEXT, "datatype": _TEXT, "shape": _SHAPE}, "name", "datatype", "shape")
    return {
        "Scored": _record(scored, *scored),
        "Prediction": _record(prediction, *prediction),
        "Results": _record(
            {
                "results": {
                    "type": "array",
                    "minItems": 2,
                    "maxItems": max_rows,
                    "items": {
                        "oneOf": [
                            {"$ref": "#/components/schemas/NamedPrediction"},
                            {"$ref": "#/components/schemas/NamedProblem"},
                        ]
                    },
                }
            },
            "results",
        ),
        "NamedPrediction": _record({"filename": _TEXT, **prediction}, "filename", *prediction),
        "NamedProblem": _record({"filename": _TEXT, **problem}, "filename", *problem),
        "Problem": _record({**problem, "request_id": _TEXT}, *problem),
        "ModelCard": _record(
            {
                "name": _TEXT,
                "variant": {"type": "string", "enum": ["fp32", "int8"]},
                "class_count": {"type": "integer", "minimum": 1},
                "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                "input_size": {
                    "type": "array",
                    "items": {"type": "integer"},
                    "description": "Channels, pixels.",
                },
                "resize": {"type": "integer", "description": "Of the shorter side, pixels."},
                "crop": {"type": "integer", "description": "Centre crop, pixels."},
                "interpolation": _TEXT,
                "mean": {"type": "array", "items": {"type": "number"}},
                "std": {"type": "array", "items": {"type": "number"}},
                "weights": {"type": ["object", "null"], "description": "Source, licence and sha256."},
                "opset": {"type": "integer"},
                "versions": {"type": "object", "description": "Of what exported it."},
                "parity": {"type": ["object", "null"], "description": "Against PyTorch: max |Δ logit|, batch sizes."},
                "accuracy": {"type": ["object", "null"], "description": "On the set that it names."},
                "calibration": {"type": ["object", "null"], "description": "Of int8."},
                "measured": {"type": ["object", "null"], "description": "The export's table: size, speed, accuracy."},
            },
            "name",
            "variant",
            "class_count",
            "sha256",
        ),
        "Document": _record({"openapi": _TEXT, "info": {"type": "object"}, "paths": {"type": "object"}}, "openapi"),
        "ServerMetadata": _record(
            {"name": _TEXT, "version": _TEXT, "extensions": {"type": "array", "items": _TEXT}},
            "name",
            "version",
            "extensions",
        ),
        "Live": _record({"live": {"const": True}}, "live"),
        "Ready": _record({"ready": {"const": True}}, "ready"),
        "ModelReady": _record({"name": _TEXT, "ready": {"const": True}}, "name", "ready"),
        "ModelMetadata": _record(
            {
                "name": _TEXT,
                "versions": {"type": "array", "items": _TEXT},
                "platform": _TEXT,
                "inputs": {"type": "array", "items": described},
                "outputs": {"type": "array", "items": described},
            },
            "name",
            "versions",
            "platform",
            "inputs",
            "outputs",
        ),
        "InferenceRequest": _record(
            {
                "id": {"type": "string", "maxLength": 1024},
                "inputs": {"type": "array", "items": _record(taken, "name", "datatype", "shape"), **_length(1)},
                "outputs": {"type": "array", "items": _record(wanted, "name"), "maxItems": 1},
                "parameters": _record({"binary_data_output": {"type": "boolean"}}),
            },
            "inputs",
        ),
        "InferenceResponse": _record(
            {
                "id": _TEXT,
                "model_name": _TEXT,
                "model_version": _TEXT,
                "outputs": {"type": "array", "items": _record(given, "name", "datatype", "shape"), **_length(1)},
            },
            "model_name",
            "model_version",
            "outputs",
        ),
        "InferenceError": _record({"error": _TEXT}, "error"),
    }


def _record(properties: Json, *required: str) -> Json:
    return {"type": "object", "properties": properties, **({"required": list(required)} if required else {})}


def _length(count: int) -> Json:
    return {"minItems": count, "maxItems": count}
