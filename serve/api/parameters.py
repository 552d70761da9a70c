"""Parses query parameters and headers into numbers within their limits."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qs

from serve.errors import BadParameter
from serve.model.postprocess import DEFAULT_TOP_K

TIMEOUT_HEADER: Final = "X-Request-Timeout-Ms"
TIMING_HEADER: Final = "X-Server-Timing"
_SHOWN_CHARACTERS: Final = 40
_MAX_DIGITS: Final = 15
_MAX_QUERY_BYTES: Final = 1024
_MAX_QUERY_FIELDS: Final = 32


def parse_query(query: bytes) -> dict[str, list[str]]:
    """Returns the values of each parameter, in the order sent.

    Args:
        query: percent-encoded, as in the request's target.

    Raises:
        BadParameter: the query is too long or has too many parameters.
    """
    if len(query) > _MAX_QUERY_BYTES:
        raise BadParameter(f"The query has {len(query)} bytes; the limit is {_MAX_QUERY_BYTES} bytes.")
    try:
        return parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        raise BadParameter(f"The query has more parameters than the limit of {_MAX_QUERY_FIELDS}.") from None


def parse_top_k(given: Sequence[str], classes: int) -> int:
    """Returns how many classes to name.

    Args:
        given: every `top_k` of the query.
        classes: how many classes the model has.

    Raises:
        BadParameter: `top_k` is not one whole number from 1 to `classes`.
    """
    text = ",".join(given) if given else str(min(DEFAULT_TOP_K, classes))
    value = _positive(text)
    if value is None or value > classes:
        raise BadParameter(f"top_k={text[:_SHOWN_CHARACTERS]!r} is not one whole number from 1 to {classes}.")
    return value


def parse_timeout(given: Sequence[str], longest_ms: int) -> float:
    """Returns the request's timeout in seconds: the server's or the client's, whichever is shorter.

    Args:
        given: every `X-Request-Timeout-Ms` header.
        longest_ms: the server's timeout.

    Raises:
        BadParameter: the header is not one whole number of milliseconds.
    """
    if not given:
        return longest_ms / 1000
    text = ",".join(given)
    value = _positive(text)
    if value is None:
        raise BadParameter(
            f"{TIMEOUT_HEADER}: {text[:_SHOWN_CHARACTERS]!r} is not one whole number of milliseconds, "
            f"1 to {10**_MAX_DIGITS - 1}."
        )
    return min(value, longest_ms) / 1000


def _positive(text: str) -> int | None:
    digits = text.lstrip("0")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS else None
