"""The contract for machines: an OpenAPI 3.1 document of what this server answers, with its own limits in it.

No error leaves this module.
"""

from typing import Any, Final

from serve import __version__
from serve.api.openapi.components import CONNECTION, HEADERS, MEANINGS, PARAMETERS, PROTOCOL_MEANINGS, RESPONSES
from serve.api.openapi.schemas import INFERENCE_ANSWER, INFERENCE_REQUEST, PREDICTION, schemas
from serve.api.v2.messages import MAX_JSON_BYTES, MAX_JSON_ROWS, VERSION
from serve.config.settings import Config

Json = dict[str, Any]

_BINARY: Final = {"type": "string", "format": "binary"}
# What any request may come to.
_ANYWHERE: Final = (403, 500)
_IMAGES: Final = (400, 408, 411, 413, 415, 422, 429, 503, 504)
_RETRY: Final = (429, 503)
# What only who has looked at a picture may answer.
_LOOKED_AT: Final = (400, 413, 415, 422)
_MODEL: Final = "/v2/models/{name}"
_MODEL_VERSION: Final = f"{_MODEL}/versions/{{version}}"


def document(config: Config, model_name: str, side: int, class_count: int) -> Json:
    """The OpenAPI document of a server with these settings and a model of this name, input side and class count."""
    guarded = config.api_keys_file is not None
    components = {
        "schemas": schemas(side, class_count, config.max_files),
        "headers": HEADERS,
        "parameters": PARAMETERS | _own_parameters(model_name, class_count),
        "responses": RESPONSES,
    }
    if guarded:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "densenet-server",
            "version": __version__,
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
            "description": (
                f"Classifies pictures with {model_name}. Unknown paths get 404 and other methods 405 with Allow, each "
                "with a problem object. Under /v2 errors are the Open Inference Protocol's."
            ),
        },
        "paths": {
            "/": {"get": _root()},
            "/upload": {"post": _upload(config, model_name, guarded)},
            "/model": {"get": _get("get_model_card", "The model card", schema="ModelCard", problems=(503,))},
            "/livez": {"get": _get("get_liveness", "Can the process answer?", "text/plain")},
            "/readyz": {
                "get": _get("get_readiness", "Is the model loaded and warm?", "text/plain", problems=(503,)),
            },
            "/healthz": {"get": _get("get_health", "As /readyz", "text/plain", problems=(503,))},
            "/metrics": {"get": _get("get_metrics", "Prometheus metrics", "text/plain")},
            "/openapi.json": {"get": _get("get_openapi", "This document", schema="Document")},
            "/docs": {"get": _get("get_docs", "This document for people", "text/html")},
            **_protocol(model_name, guarded),
        },
        "components": components,
    }


def _own_parameters(model_name: str, class_count: int) -> Json:
    """Those with this server's model in them."""
    count = {"type": "integer", "minimum": 1, "maximum": class_count, "default": min(5, class_count)}
    name = {"name": "name", "in": "path", "required": True, "description": f"There is {model_name} only."}
    return {
        "topK": {"name": "top_k", "in": "query", "description": "How many classes to name.", "schema": count},
        "name": name | {"schema": {"type": "string"}, "example": model_name},
        "version": {
            "name": "version",
            "in": "path",
            "required": True,
            "description": f"There is {VERSION} only.",
            "schema": {"type": "string"},
            "example": VERSION,
        },
    }


def _upload(config: Config, model_name: str, guarded: bool) -> Json:
    schema = {"oneOf": [_reference(each) for each in ("Prediction", "Results")]}
    files = {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": config.max_files}
    operation = _operation(
        "classify",
        "Classify pictures",
        {"application/json": {"schema": schema, "example": PREDICTION | {"model": model_name}}},
        _IMAGES,
        guarded=guarded,
        headers=("Server-Timing",),
        parameters=("topK", "timeout", "timing"),
        description=f"One picture gets one prediction, several get a list in the order sent. At most "
        f"{config.max_request_bytes} bytes and {config.max_files} files a request, {config.max_pixels} pixels a "
        "picture.",
    )
    bodies = {
        "multipart/form-data": {"schema": {"type": "object", "required": ["file"], "properties": {"file": files}}},
        "image/*": {"schema": _BINARY},
        "application/octet-stream": {"schema": _BINARY},
    }
    return operation | {"requestBody": {"required": True, "content": bodies}}


def _protocol(model_name: str, guarded: bool) -> Json:
    """The paths of the Open Inference Protocol."""
    metadata = _get("get_server_metadata", "Server metadata", schema="ServerMetadata", protocol=True, guarded=guarded)
    ready = _get("get_server_ready", "Is the server ready?", schema="Ready", problems=(503,), protocol=True)
    return {
        "/v2": {"get": metadata},
        "/v2/health/live": {"get": _get("get_server_live", "Can the process answer?", schema="Live", protocol=True)},
        "/v2/health/ready": {"get": ready},
        **_model(_MODEL, model_name, guarded, "", ("name",)),
        **_model(_MODEL_VERSION, model_name, guarded, "_version", ("name", "version")),
    }


def _model(path: str, model_name: str, guarded: bool, suffix: str, parameters: tuple[str, ...]) -> Json:
    """The paths of the model, by one of the two ways to name it. suffix: of the operations' names, which are unique."""
    common: Json = {"protocol": True, "guarded": guarded, "parameters": parameters}
    metadata = _get(f"get_model{suffix}_metadata", "Model metadata", schema="ModelMetadata", problems=(404,), **common)
    ready = _get(f"get_model{suffix}_ready", "Is the model ready?", schema="ModelReady", problems=(404, 503), **common)
    infer = _operation(
        f"infer{suffix}",
        "Infer",
        {
            "application/json": {
                "schema": _reference("InferenceResponse"),
                "example": INFERENCE_ANSWER | {"model_name": model_name},
            },
            "application/octet-stream": {"schema": _BINARY},
        },
        (404, *_IMAGES),
        headers=("Inference-Header-Content-Length", "Server-Timing"),
        description="Open Inference Protocol v2, with binary tensors and the classification extension. Takes `input`, "
        "normalised, or `image`, encoded pictures (base64 within JSON), and gives `logits`. JSON may have "
        f"{MAX_JSON_BYTES} bytes and as many values as {MAX_JSON_ROWS} tensors of `input`; binary tensors are not "
        "counted.",
        **common | {"parameters": (*parameters, "headLength", "timeout", "timing")},
    )
    bodies = {
        "application/json": {"schema": _reference("InferenceRequest"), "example": INFERENCE_REQUEST},
        "application/octet-stream": {"schema": _BINARY},
    }
    return {
        path: {"get": metadata},
        f"{path}/ready": {"get": ready},
        f"{path}/infer": {"post": infer | {"requestBody": {"required": True, "content": bodies}}},
    }


def _root() -> Json:
    """The page to drop pictures on is another form of the same answer, for who would rather have HTML."""
    operation = _get("get_root", "Is it running?", "text/plain")
    operation["responses"]["200"]["content"]["text/html"] = {"schema": {"type": "string"}}
    return operation


def _get(
    identifier: str,
    summary: str,
    media_type: str = "application/json",
    *,
    schema: str = "",
    problems: tuple[int, ...] = (),
    **more: Any,
) -> Json:
    content = {media_type: {"schema": _reference(schema) if schema else {"type": "string"}}}
    return _operation(identifier, summary, content, problems, **more)


def _operation(
    identifier: str,
    summary: str,
    content: Json,
    problems: tuple[int, ...],
    *,
    headers: tuple[str, ...] = (),
    parameters: tuple[str, ...] = (),
    description: str = "",
    protocol: bool = False,
    guarded: bool = False,
) -> Json:
    """An operation. protocol: whether it is the Open Inference Protocol's. guarded: whether it wants a key."""
    own = {*problems, *_ANYWHERE, *((401,) if guarded else ())}
    responses: Json = {"200": {"description": "The answer.", "headers": _some_headers(*headers), "content": content}}
    for status in sorted(own | CONNECTION.keys()):
        responses[str(status)] = (
            _refusal(status, protocol, "Server-Timing" in headers)
            if status in own
            else {"$ref": f"#/components/responses/{CONNECTION[status]}"}
        )
    operation: Json = {"operationId": identifier, "summary": summary, "responses": responses}
    operation["parameters"] = [
        {"$ref": f"#/components/parameters/{each}"} for each in (*parameters, "requestId", "traceparent")
    ]
    if description:
        operation["description"] = description
    if guarded:
        operation["security"] = [{"bearer": []}, {"apiKey": []}]
    return operation


def _refusal(status: int, protocol: bool, timed: bool) -> Json:
    more = ("Retry-After",) if status in _RETRY else ("WWW-Authenticate",) if status == 401 else ()
    if timed and status in _LOOKED_AT:
        more = ("Server-Timing",)
    content: Json = {"application/json": {"schema": _reference("InferenceError")}} if protocol else {}
    if not protocol or status in CONNECTION:  # what never becomes a request is not looked at for its path either
        content["application/problem+json"] = {"schema": _reference("Problem")}
    meaning = PROTOCOL_MEANINGS.get(status, MEANINGS[status]) if protocol else MEANINGS[status]
    return {"description": meaning, "headers": _some_headers(*more), "content": content}


def _some_headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *names)}


def _reference(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}
