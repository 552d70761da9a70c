"""A request's head → what of it makes its end or its server uncertain, where something does. Knows no connection.

What llhttp lets through and RFC 9112 does not: two servers in a row may take such a request for different ones, which
is how requests are smuggled.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from serve.config.hosts import host_name

_VERSIONS: Final = ("1.1", "1.0")


class Fault(NamedTuple):
    """What a request is refused with."""

    status: int
    title: str
    detail: str


def check_framing(version: str, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> Fault | None:
    """By RFC 9112, 2.3, 3.2 and 6.1.

    Args:
        version: of HTTP, such as 1.1.
        url: the request's target, in whichever form.
        headers: with their names in lower case.
    """
    if version not in _VERSIONS:
        return _bad(f"HTTP/{version} is not spoken here; HTTP/1.1 and HTTP/1.0 are.")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        return _bad(f"The request has {len(hosts)} Host headers; the limit is 1.")
    if not hosts and version != "1.0":
        return _bad(f"The request has no Host header, which HTTP/{version} wants.")
    if hosts and hosts[0] and host_name(hosts[0].decode("latin-1")) is None:
        return _bad("The Host header is malformed; it has a name or an address, and perhaps a port.")
    if hosts and _authority(url).lower() not in (b"", hosts[0].lower()):
        return _bad("The request's target names another host than its Host header.")
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if not codings:
        return None
    if version == "1.0":
        return _bad(f"The request has a Transfer-Encoding, which HTTP/{version} does not know.")
    if [coding.strip().lower() for coding in codings] != [b"chunked"]:
        return _bad("The only Transfer-Encoding that is understood is chunked, once.")
    return None


def _authority(url: bytes) -> bytes:
    """The host and port of a target in absolute form; nothing for any other form."""
    _, separator, rest = url.partition(b"://")
    is_absolute = separator and not url.startswith(b"/")
    return rest.partition(b"/")[0].partition(b"?")[0] if is_absolute else b""


def _bad(detail: str) -> Fault:
    return Fault(400, "Bad Request", detail)
