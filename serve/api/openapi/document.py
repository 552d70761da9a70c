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

from serve import __version__
from serve.api.v2.messages import MAX_JSON_BYTES, MAX_JSON_ROWS, VERSION
from serve.config.settings import Config
from serve.imaging.formats import ACCEPTED_FORMATS
from serve.model.postprocess import DEFAULT_TOP_K
from serve.problems import REASONS

Json = dict[str, Any]

TEMPLATE: Final = Path(__file__).with_name("openapi.json")


def openapi_document(config: Config, model_name: str, side: int, class_count: int) -> Json:
    """Returns the document of a server with these settings and this model.

    Args:
        side: height and width of the model's input, in pixels.
    """
    openapi = _filled(TEMPLATE.read_text(encoding="utf-8"), placeholder_values(config, model_name, side, class_count))
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


def placeholder_values(
    config: Config, model_name: str, side: int, class_count: int
) -> dict[str, str | int | list[str]]:
    """Returns the value of each placeholder in openapi.json."""
    return {
        "version": __version__,
        "model_name": model_name,
        "model_version": VERSION,
        "image_side": side,
        "class_count": class_count,
        "default_top_k": min(DEFAULT_TOP_K, class_count),
        "formats": ", ".join(ACCEPTED_FORMATS),
        "max_request_bytes": config.max_request_bytes,
        "max_files": config.max_files,
        "max_pixels": config.max_pixels,
        "max_json_bytes": MAX_JSON_BYTES,
        "max_json_rows": MAX_JSON_ROWS,
        "reasons": list(REASONS.values()),
        "request_timeout_ms": config.request_timeout_ms,
    }


def _filled(template: str, values: Mapping[str, str | int | list[str]]) -> Json:
    def value(found: re.Match[str]) -> str:
        whole, part = found.groups()
        return json.dumps(values[whole]) if whole else json.dumps(str(values[part]))[1:-1]

    filled: Json = json.loads(re.sub(r'"\{\{(\w+)\}\}"|\{\{(\w+)\}\}', value, template))
    return filled
