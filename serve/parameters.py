"""What a request asks for besides its files: query values and headers → numbers within their limits.

Errors that leave here: `BadParameter`, naming the value and what is allowed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from serve.errors import BadParameter

TIMEOUT_HEADER: Final = "X-Request-Timeout-Ms"
TIMING_HEADER: Final = "X-Server-Timing"
_DEFAULT_TOP_K: Final = 5
_SHOWN_CHARACTERS: Final = 40
_MOST_DIGITS: Final = 15


def parse_top_k(given: Sequence[str], classes: int) -> int:
    """How many classes to name. given: every `top_k` of the query; classes: how many the model tells apart."""
    text = ",".join(given) if given else str(min(_DEFAULT_TOP_K, classes))
    value = _positive(text)
    if value is None or value > classes:
        raise BadParameter(f"top_k={text[:_SHOWN_CHARACTERS]!r} is not one whole number from 1 to {classes}.")
    return value


def parse_timeout(given: Sequence[str], longest_ms: int) -> float:
    """Seconds the answer may take, the server's own limit or what the client asks for, whichever is less."""
    if not given:
        return longest_ms / 1000
    text = ",".join(given)
    value = _positive(text)
    if value is None:
        raise BadParameter(
            f"{TIMEOUT_HEADER}: {text[:_SHOWN_CHARACTERS]!r} is not one whole number of milliseconds, "
            f"1 to {10**_MOST_DIGITS - 1}."
        )
    return min(value, longest_ms) / 1000


def wants_timing(headers: Mapping[str, str]) -> bool:
    """Whether a page of this server asks to be told where the time went. headers: with lower-case lookup."""
    if headers.get(TIMING_HEADER.lower()) != "1":
        return False
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    # Over plain HTTP browsers say no more than the origin, unless the server is on their own machine.
    _, _, host = headers.get("origin", "").partition("://")
    return bool(host) and host == headers.get("host")


def _positive(text: str) -> int | None:
    return int(text[-_MOST_DIGITS:]) if re.fullmatch(r"0*[1-9]\d{0,14}", text, re.ASCII) else None
