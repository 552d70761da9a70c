"""Identifiers that correlate log lines: the request id, and the trace of W3C Trace Context.

Source of the latter: https://www.w3.org/TR/trace-context/
"""

import os
import re
from collections.abc import Iterable
from typing import Final

# A client's id is logged and sent back, so only characters that are harmless in both places are accepted.
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
# version "-" trace-id "-" parent-id "-" flags, where version ff and ids of zeros are invalid. Versions after the first
# may append more fields.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?"
)
_FIRST_VERSION: Final = "00"


def request_id_from(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Returns the client's X-Request-ID if it is valid, else a new id. Header names must be lower-case."""
    for name, value in headers:
        if name == b"x-request-id":
            if _REQUEST_ID.fullmatch(value):
                return value.decode("ascii")
            break
    return os.urandom(16).hex()


def parse_traceparent(traceparent: str) -> dict[str, str]:
    """Returns the log fields `trace_id` and `parent_id`; none if the header is invalid, as the standard requires."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if not found:
        return {}
    version, trace_id, parent_id, more = found.groups()
    if version == _FIRST_VERSION and more:
        return {}
    return {"trace_id": trace_id, "parent_id": parent_id}
