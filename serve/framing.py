"""A request's head → what of it makes its end or its server uncertain, where something does. Knows no connection.

What llhttp lets through and RFC 9112 does not: two servers in a row may take such a request for different ones, which
is how requests are smuggled. No error leaves this module.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

_BEFORE_1_1: Final = ("0.9", "1.0")
_CHUNKED: Final = b"chunked"


class Fault(NamedTuple):
    """What a request is refused with."""

    status: int
    title: str
    detail: str


def fault_of(version: str, headers: Sequence[tuple[bytes, bytes]]) -> Fault | None:
    """By RFC 9112, 3.2 and 6.1. version: of HTTP, such as 1.1. headers: with their names in lower case."""
    hosts = sum(name == b"host" for name, _ in headers)
    if hosts > 1:
        return _bad(f"The request has {hosts} Host headers; the limit is 1.")
    if not hosts and version not in _BEFORE_1_1:
        return _bad(f"The request has no Host header, which HTTP/{version} wants.")
    lines = [value for name, value in headers if name == b"transfer-encoding"]
    if not lines:
        return None
    if version in _BEFORE_1_1:
        return _bad(f"The request has a Transfer-Encoding, which HTTP/{version} does not know.")
    codings = [coding.strip().lower() for coding in b",".join(lines).split(b",")]
    if codings.count(_CHUNKED) != 1 or codings[-1] != _CHUNKED:
        return _bad("The Transfer-Encoding does not end with chunked, or names it twice.")
    if len(codings) > 1:
        return _bad("The only Transfer-Encoding that is understood is chunked.")
    return None


def _bad(detail: str) -> Fault:
    return Fault(400, "Bad Request", detail)
