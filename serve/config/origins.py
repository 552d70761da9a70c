"""Checks origins of web pages: one that no browser sends in `Origin` would silently match nothing.

A browser sends an origin as scheme, host and port, in lower case and ASCII, without the scheme's default port (RFC
6454, section 6.2, and the URL standard), or as `null` for a page that has no origin of its own.
"""

import difflib
import ipaddress
import re
import socket
import unicodedata
from typing import Final

_ORIGIN: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[^/?#]*@)?(?P<host>\[[^]]*\]|[^/?#:]{0,253})(?::(?P<port>[^/?#]*))?(?:[/?#].*)?",
    re.IGNORECASE,
)
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
_EXTENSIONS: Final = ("chrome-extension", "moz-extension", "safari-web-extension")
# How similar an unknown scheme is to one of these if it is a misspelling, by difflib.
_MISSPELLED: Final = 0.75
_NULL: Final = "null"
_APPLICATION_NAME: Final = re.compile("[A-Za-z0-9._-]+")
_DNS_NAME: Final = re.compile(r"(?=.{1,253}$)([a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?")
# To browsers, a name whose last part is a number is an IPv4 address.
_NUMBER: Final = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)\.?")
# Characters that are left out of international names (UTS 46).
_IGNORED: Final = dict.fromkeys((0xAD, 0x200B, 0x2060, 0xFEFF, *range(0xFE00, 0xFE10)))
_EXAMPLE: Final = "https://example.org"
# Old versions of Android's WebView, and applications on Cordova with them, send this; browsers send null.
_FILE: Final = "file://"
_LOCAL: Final = re.compile(r"/*(?:([\w-]+\.)*localhost\b|[\d.]+(?:[:/]|$)|\[|[^./]*:(?!443$))", re.IGNORECASE)


def parse_origin(text: str) -> str:
    """Returns an entry of `--cors-origins` if browsers send it.

    Raises:
        ValueError: they do not; the message says what to write instead.
    """
    if text.lower() in ("*", "all", "any"):
        raise ValueError(
            f"{text!r} would let every page on the web use this server through its visitors' browsers; list the "
            f"origins that may, such as {_EXAMPLE}"
        )
    written = re.sub(r"^\[?[\"'<]+|[\"'>]+]?$", "", text).replace("\\", "/")
    written = re.sub(r"^(https?)(:/*|//+)", r"\1://", written, flags=re.IGNORECASE)
    scheme, separator, rest = written.rpartition("://")
    site = scheme + separator + re.split("[/?#]", rest)[0]
    if "*" in site:
        raise ValueError(f"{text!r}: * is no wildcard here; list each origin in full, such as {_one_of_many(site)}")
    try:
        sent = _as_sent(written)
    except ValueError as error:
        raise ValueError(f"{text!r} is not an origin such as {_EXAMPLE}: {error}") from error
    if sent != text:
        raise ValueError(f"{text!r} matches no page; write {sent}, as browsers send it")
    return text


def _one_of_many(site: str) -> str:
    """Returns an origin that an entry with stars may have meant."""
    scheme, separator, host = site.lower().partition("://")
    if separator and "*" not in scheme and "*" in host and (scheme := _page_scheme(scheme)) not in _DEFAULT_PORTS:
        return f"{scheme}://{'ID' if '-' in scheme else 'localhost'}"
    site = re.sub(r"(?<![^/.])\*\.", "www.", re.sub(r"^[^:]*\*[^:]*://", "https://", site))
    name, colon, port = site.rpartition(":")
    try:
        return _as_sent(f"{name}:3000" if port == "*" else name + colon + port)
    except ValueError:
        return _EXAMPLE


def _as_sent(text: str) -> str:
    """Returns how browsers send an origin that may be written in some other way; raises `ValueError` if it is none."""
    text = text.removeprefix("blob:")
    if text.lower() == _FILE:
        return _FILE
    if text.lower() == _NULL or re.match("(data|file):|about:(blank|srcdoc)", text, re.IGNORECASE):
        return _NULL
    if "://" not in text:
        if not re.match(r"/*(localhost\b|[^/]*[.:])", text, re.IGNORECASE):
            raise ValueError("it has no scheme, and no host with a dot or a port")
        text = f"{'http' if _LOCAL.match(text) else 'https'}://{text.lstrip('/')}"
    found = _ORIGIN.fullmatch(text)
    if found is None or (scheme := _page_scheme(found["scheme"].lower())) == "ftp":
        raise ValueError("no page has such a scheme, host and port")
    return f"{scheme}://{_page_host(scheme, found['host'])}{_page_port(scheme, found['port'] or '')}"


def _page_scheme(scheme: str) -> str:
    """Returns the scheme of a page that was meant: of a WebSocket's page, or the one that is misspelled."""
    scheme = {"ws": "http", "wss": "https"}.get(scheme, scheme)
    return next(iter(difflib.get_close_matches(scheme, (*_DEFAULT_PORTS, *_EXTENSIONS), 1, _MISSPELLED)), scheme)


def _page_host(scheme: str, host: str) -> str:
    """Returns the host as browsers send it; raises `ValueError` if it is none."""
    name, pattern = _ascii_name(host), _DNS_NAME
    if scheme not in _DEFAULT_PORTS:  # an extension's id, or an application's name
        name, pattern = host.lower() if scheme in _EXTENSIONS[:2] else host, _APPLICATION_NAME
    elif host.startswith("["):
        return _ipv6(host)
    elif _NUMBER.fullmatch(name):
        return _ipv4(host, name.removesuffix("."))
    if not pattern.fullmatch(name):
        raise ValueError(f"{host!r} is not a host")
    return name


def _page_port(scheme: str, port: str) -> str:
    """Returns the port with its colon, or nothing if it is the default; raises `ValueError` if it is none."""
    if not port:
        return ""
    if not re.fullmatch("[0-9]{1,9}", port) or not 0 < int(port) < 2**16:
        raise ValueError(f"{port!r} is not a port from 1 to 65535")
    return "" if str(int(port)) == _DEFAULT_PORTS.get(scheme) else f":{int(port)}"


def _ipv4(host: str, name: str) -> str:
    try:
        return socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        raise ValueError(f"{host!r} is not an IPv4 address") from None


def _ipv6(host: str) -> str:
    try:
        address = ipaddress.IPv6Address(host.strip("[]"))
    except ValueError:
        raise ValueError(f"{host!r} is not an IPv6 address") from None
    if address.scope_id:
        raise ValueError(f"{host!r} is not an IPv6 address that browsers take: it has a zone")
    low = int(address) & 0xFFFF_FFFF
    mapped = f"::ffff:{low >> 16:x}:{low & 0xFFFF:x}"  # as browsers write it, unlike Python since 3.13
    return f"[{mapped if address.ipv4_mapped else address}]"


def _ascii_name(host: str) -> str:
    """Returns a host name in lower case, with its international labels in Punycode (UTS 46, nontransitional)."""
    # Letter by letter, because at the end of a word str.lower() makes another letter of a capital sigma.
    lower = "".join(each.lower() for each in unicodedata.normalize("NFKC", host.translate(_IGNORED)))
    labels = unicodedata.normalize("NFKC", lower).replace("\u3002", ".").split(".")
    return ".".join(each if each.isascii() else "xn--" + each.encode("punycode").decode("ascii") for each in labels)
