"""Decides which hosts the server answers to, and whether a request comes from a page of its own.

Any web page can make a browser send requests here. The `Origin` header shows a foreign page, the `Host` header one
whose name was pointed at this machine (DNS rebinding).
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

# A name, an IPv4 address or a bracketed IPv6 one, then perhaps a port: what a Host header may hold (RFC 9110, 7.2).
_HOST: Final = re.compile(r"([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?")
_LOOPBACK: Final = ("localhost", "*.localhost", "127.0.0.1", "::1")
_ANY: Final = "*"


@lru_cache(maxsize=16)  # few, because a client may send long ones
def host_name(host: str) -> str | None:
    """Returns the name or address in a `Host` header, in lower case, without brackets and port; None if malformed."""
    found = _HOST.fullmatch(host)
    return found[1].strip("[]").removesuffix(".").lower() if found else None


class AllowedHosts:
    """The hosts that a server answers to.

    Args:
        names: names and addresses without port, `*.example.org` for all subdomains, `*` for any. Loopback names and all
            addresses are allowed too: DNS cannot point them elsewhere, and probes use them. Without names, any host is
            allowed, or if the server listens on loopback only, loopback names and addresses.
        address: the name or address that the server listens on.
    """

    def __init__(self, names: Iterable[str], address: str) -> None:
        given = {name.lower().removesuffix(".") for name in names}
        self._only_loopback = not given and _is_loopback(address)
        local = {*_LOOPBACK, address.lower().removesuffix(".")}  # no other site can have these names
        self._names = given | local if given or self._only_loopback else {_ANY}
        self._suffixes = tuple(name.removeprefix("*") for name in self._names if name.startswith("*."))

    def __contains__(self, host: str) -> bool:
        """Returns whether a `Host` header names one of them; an empty one is allowed, because no browser sends it."""
        if not host or _ANY in self._names:
            return True
        name = host_name(host)
        if name is None:
            return False
        return name in self._names or name.endswith(self._suffixes) or self._is_allowed_address(name)

    def _is_allowed_address(self, name: str) -> bool:
        address = _address(name)
        return address is not None and (address.is_loopback or not self._only_loopback)


def is_same_origin(origin: str, site: str, scheme: str, host: str) -> bool:
    """Returns whether a request with an `Origin` comes from a page of this server.

    Args:
        origin: the `Origin` header, which a page cannot forge.
        site: the `Sec-Fetch-Site` header, which it cannot forge either; browsers send it over TLS and to loopback only.
        scheme: the scheme of the request; behind a proxy that terminates TLS it differs from the page's.
        host: the `Host` header.
    """
    return site == "same-origin" if site else bool(host) and origin == f"{scheme}://{host}"


def _is_loopback(host: str) -> bool:
    """Returns whether a server on this host listens on loopback only, however the host is written."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):  # reported when the server tries to listen there
        return False
    addresses = [_address(str(entry[4][0])) for entry in found]
    return all(address is not None and address.is_loopback for address in addresses)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parses an address, converting an IPv4-mapped IPv6 address to IPv4; None if it is not an address."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
