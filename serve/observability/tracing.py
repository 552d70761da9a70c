"""W3C Trace Context (https://www.w3.org/TR/trace-context/): a `traceparent` header → what a log line says of it.

No error leaves this module: what is not valid is ignored, as the standard has it.
"""

import re
from typing import Final

# version "-" trace-id "-" parent-id "-" flags; later versions may add more behind another "-".
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_NO_VERSION: Final = "ff"
_FIRST_VERSION: Final = "00"


def trace_of(traceparent: str) -> dict[str, str]:
    """`trace_id` and `parent_id`, lower-case hexadecimal; empty where the header names no trace."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if not found:
        return {}
    version, trace_id, parent_id, more = found.groups()
    if (
        version == _NO_VERSION
        or (version == _FIRST_VERSION and more)
        or not int(trace_id, 16)
        or not int(parent_id, 16)
    ):
        return {}
    return {"trace_id": trace_id, "parent_id": parent_id}
