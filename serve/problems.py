"""Maps each error to its HTTP status, title, reason and retry advice, and writes the RFC 9457 problem.

Titles are RFC 9110's reason phrases, because the type of the problems is `about:blank` (RFC 9457, section 4.2.1).
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final

from serve import errors

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True)
class Rule:
    """How one class of error is answered; `retry_after` is in seconds for Retry-After, None for no such header."""

    status: int
    title: str
    retry_after: int | None = None


RULES: Final[dict[type[errors.RequestError], Rule]] = {
    errors.MalformedRequest: Rule(400, "Bad Request"),
    errors.BadPreflight: Rule(400, "Bad Request"),
    errors.BadParameter: Rule(400, "Bad Request"),
    errors.MalformedUpload: Rule(400, "Bad Request"),
    errors.MissingFile: Rule(400, "Bad Request"),
    errors.EmptyFile: Rule(400, "Bad Request"),
    errors.BadTensor: Rule(400, "Bad Request"),
    errors.Unauthorized: Rule(401, "Unauthorized"),
    errors.ForeignOrigin: Rule(403, "Forbidden"),
    errors.ForeignHost: Rule(403, "Forbidden"),
    errors.UnknownRoute: Rule(404, "Not Found"),
    errors.UnknownModel: Rule(404, "Not Found"),
    errors.MethodNotAllowed: Rule(405, "Method Not Allowed"),
    errors.HeadTooSlow: Rule(408, "Request Timeout"),
    errors.UploadTooSlow: Rule(408, "Request Timeout"),
    errors.UnboundedBody: Rule(411, "Length Required"),
    errors.UploadTooLarge: Rule(413, "Content Too Large"),
    errors.TooManyFiles: Rule(413, "Content Too Large"),
    errors.TooManyPixels: Rule(413, "Content Too Large"),
    errors.TooManyFrames: Rule(413, "Content Too Large"),
    errors.TooComplex: Rule(413, "Content Too Large"),
    errors.TargetTooLong: Rule(414, "URI Too Long"),
    errors.UnsupportedBody: Rule(415, "Unsupported Media Type"),
    errors.UnsupportedFormat: Rule(415, "Unsupported Media Type"),
    errors.UndecodableImage: Rule(422, "Unprocessable Content"),
    errors.UnsupportedVariety: Rule(422, "Unprocessable Content"),
    errors.DecodeTimeout: Rule(422, "Unprocessable Content"),
    errors.DecoderDied: Rule(422, "Unprocessable Content"),
    errors.NoFeatureMaps: Rule(422, "Unprocessable Content"),
    errors.UploadsFull: Rule(429, "Too Many Requests", retry_after=1),
    errors.QueueFull: Rule(429, "Too Many Requests", retry_after=1),
    errors.HeadTooLarge: Rule(431, "Request Header Fields Too Large"),
    errors.InternalError: Rule(500, "Internal Server Error"),
    errors.NotReady: Rule(503, "Service Unavailable", retry_after=1),
    errors.TooManyConnections: Rule(503, "Service Unavailable", retry_after=1),
    errors.DeadlinePassed: Rule(504, "Gateway Timeout"),
}
# The fixed word of each error, in problems, metrics and the log: its class's name.
REASONS: Final = {error: re.sub(r"(?<!^)(?=[A-Z])", "_", error.__name__).lower() for error in RULES}
REASONS[errors.Unauthorized] = "unauthorised"  # since the first release
_LONGEST_RETRY: Final = 30


def retry_after(error: errors.RequestError) -> int | None:
    """Returns the seconds for Retry-After, 1 to 30; None for no such header."""
    seconds = RULES[type(error)].retry_after if error.retry_after is None else error.retry_after
    return None if seconds is None else min(max(1, math.ceil(seconds)), _LONGEST_RETRY)


def problem(status: int, title: str, detail: str, reason: str) -> dict[str, Any]:
    """Returns a problem object."""
    return {"type": "about:blank", "title": title, "status": status, "detail": detail, "reason": reason}


def problem_body(path: str, content: dict[str, Any]) -> tuple[bytes, str]:
    """Returns the body and the media type of a problem in response to a request for `path`.

    Under `/v2` the body is the Open Inference Protocol's error object. Elsewhere it is the problem object, which ends
    with a line feed for readers at a terminal.
    """
    if path == "/v2" or path.startswith("/v2/"):
        return json.dumps({"error": content["detail"]}, ensure_ascii=False).encode(), "application/json"
    return json.dumps(content, ensure_ascii=False).encode() + b"\n", MEDIA_TYPE


def problem_from(error: errors.RequestError) -> dict[str, Any]:
    """Returns the problem object of an error."""
    rule = RULES[type(error)]
    return problem(rule.status, rule.title, str(error), REASONS[type(error)])
