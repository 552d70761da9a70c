"""The contract for machines: an OpenAPI 3.1 document of what this server answers, with its own limits in it.

No error leaves this module.
"""

from typing import Any, Final

from serve import __version__
from serve.config import Config
from serve.openapi_schemas import INFERENCE_EXAMPLE, schemas
from serve.parameters import TIMEOUT_HEADER, TIMING_HEADER

Json = dict[str, Any]

_BINARY: Final = {"type": "string", "format": "binary"}
# What any request may come to. 400, 408 and 431 also answer what never becomes a request.
_ANYWHERE: Final = (403, 431, 500)
_PICTURES: Final = (400, 408, 411, 413, 415, 422, 429, 503, 504)
_MEANINGS: Final = {
    400: "Malformed: no part named `file`, an empty file, a broken body, a value that is not allowed.",
    401: "No API key, or none that is accepted.",
    403: "From a page of another origin, which no setting lists.",
    404: "There is no such model.",
    408: "The body comes too slowly.",
    411: "Neither Content-Length nor chunked: nothing bounds the body.",
    413: "More bytes, files, pixels or frames than allowed; the detail names the limit.",
    415: "Neither a form nor a picture, or a format that is not accepted.",
    422: "An accepted format that cannot be decoded: truncated or corrupt.",
    429: "The queue is full.",
    431: "The head has more than 64 KiB or 128 fields.",
    500: "A defect; it is in the server's log under the request id.",
    503: "Not ready yet, or shutting down.",
    504: "The request's own deadline passed before its answer.",
}
_RETRY: Final = (429, 503)
_HEADERS: Final[Json] = {
    "X-Request-ID": {
        "description": "The client's own where it sent a sane one; the log has it too.",
        "required": True,
        "schema": {"type": "string", "maxLength": 128},
    },
    "Retry-After": {
        "description": "Seconds after which trying again can help.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1, "maximum": 30},
    },
    "Server-Timing": {
        "description": "Milliseconds by stage, where it is switched on or a page of this server asks.",
        "schema": {"type": "string"},
    },
    "WWW-Authenticate": {"required": True, "schema": {"type": "string", "const": "Bearer"}},
    "Inference-Header-Content-Length": {
        "description": "Bytes of JSON, where a binary tensor follows.",
        "schema": {"type": "integer", "minimum": 0},
    },
}
_PARAMETERS: Final[Json] = {
    "timeout": {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "description": "Milliseconds from the complete upload to its answer, less than the server's own.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999_999_999},
    },
    "timing": {
        "name": TIMING_HEADER,
        "in": "header",
        "description": "1 asks for Server-Timing; heeded from this server's own page only.",
        "schema": {"type": "string", "const": "1"},
    },
    "requestId": {
        "name": "X-Request-ID",
        "in": "header",
        "description": "Sent back and logged where it is of these characters; else the server makes one.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=-]{1,128}$"},
    },
    "traceparent": {
        "name": "traceparent",
        "in": "header",
        "description": "W3C Trace Context; logged.",
        "schema": {"type": "string", "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"},
    },
}


def document(config: Config, model_name: str, side: int, class_count: int) -> Json:
    """The OpenAPI document of a server with these settings and a model of this name, input side and class count."""
    guarded = config.api_keys_file is not None
    top_k = {
        "name": "top_k",
        "in": "query",
        "description": "How many classes to name.",
        "schema": {"type": "integer", "minimum": 1, "maximum": class_count, "default": min(5, class_count)},
    }
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "const": model_name}}
    upload = _operation(
        "Classify pictures",
        f"One picture gets one prediction, several get a list in the order sent. At most {config.max_request_bytes} "
        f"bytes and {config.max_files} files a request, {config.max_pixels} pixels a picture.",
        {
            "application/json": {
                "schema": {"oneOf": [{"$ref": "#/components/schemas/" + each} for each in ("Prediction", "Results")]}
            }
        },
        problems=(*_PICTURES, *((401,) if guarded else ())),
        headers=("Server-Timing",),
    ) | {
        "parameters": [top_k, *_references("parameters", "timeout", "timing", "requestId", "traceparent")],
        "requestBody": {"required": True, "content": _upload_bodies(config)},
    }
    infer = _operation(
        "Infer",
        "Open Inference Protocol v2, with binary tensors and the classification extension. Takes `input`, normalised, "
        "or `image`, encoded pictures (base64 within JSON), and gives `logits`.",
        {
            "application/json": {"schema": _reference("InferenceResponse")},
            "application/octet-stream": {"schema": _BINARY},
        },
        problems=(404, *_PICTURES, *((401,) if guarded else ())),
        headers=("Inference-Header-Content-Length", "Server-Timing"),
        protocol=True,
    ) | {
        "parameters": [
            name,
            {
                "name": "Inference-Header-Content-Length",
                "in": "header",
                "description": "Bytes of JSON, where a binary tensor follows.",
                "schema": {"type": "integer", "minimum": 0},
            },
            *_references("parameters", "timeout", "timing", "requestId", "traceparent"),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _reference("InferenceRequest"), "example": INFERENCE_EXAMPLE},
                "application/octet-stream": {"schema": _BINARY},
            },
        },
    }
    if guarded:
        infer["security"] = upload["security"] = [{"bearer": []}, {"apiKey": []}]
    paths = {
        "/": {"get": _root()},
        "/upload": {"post": upload},
        "/model": {"get": _get("The model card", schema="ModelCard", problems=(503,))},
        "/livez": {"get": _get("Can the process answer?", "text/plain")},
        "/readyz": {"get": _get("Is the model loaded and warm?", "text/plain", problems=(503,))},
        "/healthz": {"get": _get("As /readyz", "text/plain", problems=(503,))},
        "/metrics": {"get": _get("Prometheus metrics", "text/plain")},
        "/openapi.json": {"get": _get("This document", schema="Document")},
        "/docs": {"get": _get("This document for people", "text/html")},
        "/v2": {"get": _get("Server metadata", schema="ServerMetadata", protocol=True, guarded=guarded)},
        "/v2/health/live": {"get": _get("Can the process answer?", schema="Live", protocol=True)},
        "/v2/health/ready": {"get": _get("Is the server ready?", schema="Ready", problems=(503,), protocol=True)},
        "/v2/models/{name}": {
            "parameters": [name],
            "get": _get("Model metadata", schema="ModelMetadata", problems=(404,), protocol=True, guarded=guarded),
        },
        "/v2/models/{name}/ready": {
            "parameters": [name],
            "get": _get(
                "Is the model ready?", schema="ModelReady", problems=(404, 503), protocol=True, guarded=guarded
            ),
        },
        "/v2/models/{name}/infer": {"post": infer},
    }
    components = {
        "schemas": schemas(side, class_count, config.max_files),
        "headers": _HEADERS,
        "parameters": _PARAMETERS,
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
                "with a problem object; what is no HTTP gets 400, a head that comes too slowly 408, and a connection "
                "too many 503. Under /v2 errors are the Open Inference Protocol's."
            ),
        },
        "paths": paths,
        "components": components,
    }


def _upload_bodies(config: Config) -> Json:
    files = {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": config.max_files}
    form = {"type": "object", "required": ["file"], "properties": {"file": files}}
    return {
        "multipart/form-data": {"schema": form},
        "image/*": {"schema": _BINARY},
        "application/octet-stream": {"schema": _BINARY},
    }


def _get(
    summary: str,
    media_type: str = "application/json",
    *,
    schema: str = "",
    problems: tuple[int, ...] = (),
    protocol: bool = False,
    guarded: bool = False,
) -> Json:
    content = {media_type: {"schema": _reference(schema) if schema else {"type": "string"}}}
    operation = _operation(summary, "", content, (*problems, *((401,) if guarded else ())), protocol=protocol)
    if guarded:
        operation["security"] = [{"bearer": []}, {"apiKey": []}]
    return operation


def _root() -> Json:
    """The page to drop pictures on is another form of the same answer, for who would rather have HTML."""
    operation = _get("Is it running?", "text/plain")
    operation["responses"]["200"]["content"]["text/html"] = {"schema": {"type": "string"}}
    return operation


def _operation(
    summary: str,
    description: str,
    content: Json,
    problems: tuple[int, ...],
    headers: tuple[str, ...] = (),
    protocol: bool = False,
) -> Json:
    responses: Json = {"200": {"description": "The answer.", "headers": _some_headers(*headers), "content": content}}
    for status in sorted({*problems, *_ANYWHERE}):
        more = ("Retry-After",) if status in _RETRY else ("WWW-Authenticate",) if status == 401 else ()
        # What never becomes a request is not looked at for its path either.
        own = protocol and status != 431
        error = (
            {"application/json": {"schema": _reference("InferenceError")}}
            if own
            else {"application/problem+json": {"schema": _reference("Problem")}}
        )
        responses[str(status)] = {
            "description": _MEANINGS[status],
            "headers": _some_headers(*more),
            "content": error,
        }
    return {"summary": summary, **({"description": description} if description else {}), "responses": responses}


def _some_headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *names)}


def _reference(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _references(kind: str, *names: str) -> list[Json]:
    return [{"$ref": f"#/components/{kind}/{name}"} for name in names]
