"""What the operations of the OpenAPI document share: statuses' meanings, headers, parameters and common answers.

No error leaves this module.
"""

from typing import Any, Final

from serve.api.parameters import TIMEOUT_HEADER, TIMING_HEADER

Json = dict[str, Any]

MEANINGS: Final = {
    400: "Malformed: no part named `file`, an empty file, a broken body, a value that is not allowed.",
    401: "No API key, or none that is accepted.",
    403: "From a page of another origin, or for a host, that no setting lists.",
    404: "There is no such model, or not in this version.",
    408: "The head or the body comes too slowly.",
    411: "Neither Content-Length nor chunked: nothing bounds the body.",
    413: "More bytes, files, pixels or frames than allowed; the detail names the limit.",
    414: "The target has more than 16 KiB.",
    415: "Neither a form nor a picture, or a format that is not accepted.",
    422: "An accepted format that cannot be decoded: truncated or corrupt.",
    429: "The queue is full.",
    431: "The head has more than 64 KiB or 128 fields.",
    500: "A defect; it is in the server's log under the request id.",
    503: "Not ready yet, shutting down, or a connection too many.",
    504: "The request's own deadline passed before its answer.",
}
# Where the Open Inference Protocol has other reasons.
PROTOCOL_MEANINGS: Final = {
    400: "Malformed: no JSON, a tensor whose name, datatype, shape and data do not fit, an empty picture.",
    413: "More bytes, JSON, rows, pixels or frames than allowed; the error names the limit.",
    415: "A compressed body, or a picture in a format that is not accepted.",
}
HEADERS: Final[Json] = {
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
    "WWW-Authenticate": {
        "description": "How to send a key.",
        "required": True,
        "schema": {"type": "string", "const": "Bearer"},
    },
    "Inference-Header-Content-Length": {
        "description": "Bytes of JSON, where a binary tensor follows.",
        "schema": {"type": "integer", "minimum": 0},
    },
}
PARAMETERS: Final[Json] = {
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
        "schema": {"type": "string", "enum": ["1"]},
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
    "headLength": {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "Bytes of JSON, where a binary tensor follows.",
        "schema": {"type": "integer", "minimum": 0},
    },
}
_PROBLEM: Final = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def _common(description: str, *headers: str) -> Json:
    names = ("X-Request-ID", *headers)
    return {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        "content": _PROBLEM,
    }


# What answers any connection, before there is a request on it.
CONNECTION: Final = {400: "NoHttp", 408: "SlowHead", 414: "LongTarget", 431: "LargeHead", 503: "Crowded"}
RESPONSES: Final[Json] = {
    "NoHttp": _common("What was sent is no HTTP/1.1, or leaves its host or its end uncertain."),
    "SlowHead": _common("The head comes too slowly."),
    "LongTarget": _common(MEANINGS[414]),
    "LargeHead": _common(MEANINGS[431]),
    "Crowded": _common("There are as many connections as there may be.", "Retry-After"),
}
