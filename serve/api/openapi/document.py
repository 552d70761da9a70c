"""Makes the OpenAPI 3.1 document of one server from openapi.json.

A `{{name}}` in openapi.json stands for one of the values below: a string that is only a placeholder becomes the value
itself, such as a number or a list; in a longer string the value is inserted as text. Responses under `x-responses` are
copied to where they are referred to, because some client generators ignore responses behind a `$ref`. Without API keys
the document has no `security` and no 401.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from serve import __version__
from serve.api.explain_query import MIN_VIEW
from serve.api.parameters import MOST_LISTED
from serve.api.v2.messages import MAX_JSON_BYTES, MAX_JSON_ROWS, VERSION
from serve.api.v2.outputs import EMBEDDING, LOGITS
from serve.config.settings import Config
from serve.imaging.formats import ACCEPTED_FORMATS
from serve.imaging.messages import MAX_VIEW
from serve.model.classifier import Classifier
from serve.model.look import DEFAULT_OPACITY, DEFAULT_VIEW
from serve.model.postprocess import DEFAULT_TOP_K, SIGMOID, ScoredLabel
from serve.model.prediction import prediction
from serve.model.stages import Classified
from serve.problems import REASONS

Json = dict[str, Any]

TEMPLATE: Final = Path(__file__).with_name("openapi.json")
_EACH_ITS_OWN: Final = "Sigmoid of this class by itself, so the probabilities of all classes do not add up to 1."
# In the examples, of the model's first classes.
_PROBABILITY: Final = 0.9312
_LOGITS: Final = (15.6228256, 14.5257072)
_PREDICTIONS: Final = ("Scored", "Prediction", "NamedPrediction")


def openapi_document(config: Config, classifier: Classifier) -> Json:
    """Returns the document of a server with these settings and this model."""
    openapi = _filled(TEMPLATE.read_text(encoding="utf-8"), placeholder_values(config, classifier))
    _describe_ids(openapi["components"]["schemas"], classifier)
    shared = {f"#/x-responses/{name}": response for name, response in openapi.pop("x-responses").items()}
    operations = [operation for path in openapi["paths"].values() for operation in path.values()]
    for operation in operations:
        responses = operation["responses"].items()
        operation["responses"] = {status: shared.get(each.get("$ref"), each) for status, each in responses}
    if config.api_keys_file is None:
        del openapi["components"]["securitySchemes"]
        for operation in operations:
            operation.pop("security", None)
            operation["responses"].pop("401", None)
    return openapi


def _describe_ids(schemas: Json, classifier: Classifier) -> None:
    """Leaves `imagenet_id` optional if a class has no id, and out if none has."""
    ids = [label.imagenet_id is not None for label in classifier.labels]
    if all(ids):
        return
    for name in _PREDICTIONS:
        schemas[name]["required"].remove("imagenet_id")
        if not any(ids):
            del schemas[name]["properties"]["imagenet_id"]


def placeholder_values(config: Config, classifier: Classifier) -> dict[str, Any]:
    """Returns the value of each placeholder in openapi.json."""
    model, labels, class_count = classifier.model, classifier.labels, classifier.model.class_count
    example = Classified(np.zeros(class_count, np.float32), [ScoredLabel(0, labels[0], _PROBABILITY)], {})
    ranked = [f"{_LOGITS[index]}:{index}:{label.name}" for index, label in enumerate(labels[: len(_LOGITS)])]
    outputs = [LOGITS, EMBEDDING] if model.features else [LOGITS]
    return {
        "version": __version__,
        "model_name": model.name,
        "model_version": VERSION,
        "image_side": model.input_side,
        "class_count": class_count,
        "most_listed": MOST_LISTED,
        "labels_are_listed": class_count <= MOST_LISTED,
        "probability": _EACH_ITS_OWN if classifier.activation.name == SIGMOID else "Softmax over all classes.",
        "example_prediction": prediction(example, model.name),
        "example_ranking": ranked,
        "example_classes": len(ranked),
        "default_top_k": min(DEFAULT_TOP_K, class_count),
        "output_names": outputs,
        "output_count": len(outputs),
        "min_view": MIN_VIEW,
        "max_view": MAX_VIEW,
        "default_view": DEFAULT_VIEW,
        "default_opacity": DEFAULT_OPACITY,
        "formats": ", ".join(ACCEPTED_FORMATS),
        "max_request_bytes": config.max_request_bytes,
        "max_files": config.max_files,
        "max_pixels": config.max_pixels,
        "max_json_bytes": MAX_JSON_BYTES,
        "max_json_rows": MAX_JSON_ROWS,
        "reasons": list(REASONS.values()),
        "request_timeout_ms": config.request_timeout_ms,
    }


def _filled(template: str, values: Mapping[str, Any]) -> Json:
    def value(found: re.Match[str]) -> str:
        whole, part = found.groups()
        return json.dumps(values[whole]) if whole else json.dumps(str(values[part]))[1:-1]

    filled: Json = json.loads(re.sub(r'"\{\{(\w+)\}\}"|\{\{(\w+)\}\}', value, template))
    return filled
