"""Which hosts the server answers to, and which web pages are its own. Knows no HTTP but the two headers.

A browser sends requests for any page to any address, so a foreign page is told by its `Origin`, and one whose own name
was pointed at this machine (DNS rebinding) by its `Host`.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Final

# A name, an IPv4 address or a bracketed IPv6 one, then perhaps a port: what a Host header may hold (RFC 9110, 7.2).
_HOST: Final = re.compile(r"([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{0,5})?")
_LOOPBACK: Final = ("localhost", "*.localhost", "127.0.0.1", "::1")
_ANY: Final = "*"


def host_name(host: str) -> str | None:
    """The name or address in a `Host` header, in lower case, without brackets and port; None if it is malformed."""
    found = _HOST.fullmatch(host)
    return found[1].strip("[]").removesuffix(".").lower() if found else None


class AllowedHosts:
    """The hosts that a server answers to.

    Args:
        names: names and addresses without port, `*.example.org` for all names below example.org, `*` for any. Loopback
            names and all addresses are allowed besides: nobody can point them elsewhere, and probes use them.
            If there are no names: loopback names and addresses, if the server listens on loopback only, else any.
        address: the name or address that the server listens on.
    """

    def __init__(self, names: Iterable[str], address: str) -> None:
        given = {name.lower().removesuffix(".") for name in names}
        self._only_loopback = not given and _is_loopback(address)
        local = {*_LOOPBACK, address.lower().removesuffix(".")}  # nobody else's page can have such a name
        self._names = given | local if given or self._only_loopback else {_ANY}
        self._suffixes = tuple(name.removeprefix("*") for name in self._names if name.startswith("*."))

    def __contains__(self, host: str) -> bool:
        """Whether a `Host` header names one of them. An empty one does: no browser sends it."""
        if not host or _ANY in self._names:
            return True
        name = host_name(host)
        if name is None:
            return False
        return name in self._names or name.endswith(self._suffixes) or self._is_allowed_address(name)

    def _is_allowed_address(self, name: str) -> bool:
        address = _address(name)
        return address is not None and (address.is_loopback or not self._only_loopback)


def is_own_page(origin: str, site: str, scheme: str, host: str) -> bool:
    """Whether a browser sent a request for a page of this server.

    Args:
        origin: the `Origin` header, which a page cannot forge.
        site: `Sec-Fetch-Site`, which it cannot forge either; browsers send it over TLS and to their own machine only.
        scheme: how the request came; behind a proxy that ends TLS it is not the page's.
        host: the `Host` header.
    """
    return site == "same-origin" if site else bool(host) and origin == f"{scheme}://{host}"


def _is_loopback(host: str) -> bool:
    """Whether a server on this host listens on loopback only, however it is spelt."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):  # which whoever listens there says
        return False
    addresses = [_address(str(entry[4][0])) for entry in found]
    return all(address is not None and address.is_loopback for address in addresses)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address; an IPv4 one also where it is written as an IPv6 one."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
