"""Refuses requests whose length or host is ambiguous: llhttp accepts them, RFC 9112 forbids them.

Two servers in a row may read them differently (request smuggling).
"""

from collections.abc import Sequence
from typing import Final

from serve.config.hosts import host_name
from serve.errors import MalformedRequest

_VERSIONS: Final = ("1.1", "1.0")


def check_framing(version: str, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> MalformedRequest | None:
    """Returns the first violation of RFC 9112, sections 2.3, 3.2 and 6.1, or None.

    Args:
        version: HTTP version, such as 1.1.
        url: request target, in any form.
        headers: with names in lower case.
    """
    if version not in _VERSIONS:
        return MalformedRequest(f"HTTP/{version} is not supported; use HTTP/1.1 or HTTP/1.0.")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        return MalformedRequest(f"The request has {len(hosts)} Host headers; the limit is 1.")
    if not hosts and version != "1.0":
        return MalformedRequest(f"The request has no Host header, which HTTP/{version} requires.")
    if hosts and hosts[0] and host_name(hosts[0].decode("latin-1")) is None:
        return MalformedRequest("The Host header is malformed; it must be a name or an address, perhaps with a port.")
    if hosts and b"://" in url and _authority(url).lower() not in (b"", hosts[0].lower()):
        return MalformedRequest("The request target and the Host header name different hosts.")
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if not codings:
        return None
    if version == "1.0":
        return MalformedRequest(f"The request has a Transfer-Encoding, which HTTP/{version} does not have.")
    if [coding.strip().lower() for coding in codings] != [b"chunked"]:
        return MalformedRequest("The only supported Transfer-Encoding is chunked, once.")
    return None


def _authority(url: bytes) -> bytes:
    """Returns the host and port of a target in absolute form; empty for any other form."""
    _, separator, rest = url.partition(b"://")
    is_absolute = separator and not url.startswith(b"/")
    return rest.partition(b"/")[0].partition(b"?")[0] if is_absolute else b""
