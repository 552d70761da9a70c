"""Reads the parameters of Content-Type and Content-Disposition, in every encoding that clients use for file names.

Reading a header takes time in proportion to its length.
"""

import re
from contextlib import suppress
from email.errors import HeaderParseError
from email.header import decode_header
from email.utils import decode_params, unquote
from typing import Final
from urllib.parse import unquote_to_bytes

from serve.errors import MalformedUpload

_NAMES: Final = ("name", "filename")
# A quoted string may contain semicolons. The quantifiers give nothing back, so that there is nothing to try twice.
_PARAMETER: Final = re.compile(r';[ \t]*+([^=;\s"]++)[ \t]*+=[ \t]*+("(?:[^"\\]++|\\.)*+"|[^;]*+)', re.DOTALL)
# What most clients send: names that mean themselves in every encoding.
_ORDINARY: Final = re.compile(
    r'form-data; name="(?P<name>[\w. -]*+)"(?:; filename="(?P<filename>[\w. -]*+)")?', re.ASCII
)
# Reading a parameter takes microseconds, and a form can have sixty headers full of them.
_MAX_SEMICOLONS: Final = 32
# File systems allow 255 bytes, and percent-encoding triples them. A longer name is left as it was sent.
_MAX_ENCODED: Final = 1024
# Only these, because Python imports a module for each charset that it is asked for, and never forgets a wrong one.
_CHARSETS: Final = {"utf-8", "utf8", "iso-8859-1", "latin1", "us-ascii", "windows-1252"}
_ENCODED_WORDS: Final = re.compile(r"(?:=\?[^?\s]++\?[bq]\?[!->@-~ ]*+\?=[ \t]*+)++", re.IGNORECASE)
# What browsers write in names for quotes and line ends (HTML, "multipart/form-data encoding algorithm").
_BROWSERS_ESCAPE: Final = re.compile("%(?:22|0D|0A)")


def boundary_of(content_type: str) -> bytes:
    """Returns the boundary of a Content-Type, empty if it has none; raises `MalformedUpload`."""
    given = _parameters(content_type)
    if "boundary" not in given and any(name.startswith("boundary*") for name in given):
        raise MalformedUpload("The boundary is encoded or in several pieces (RFC 2231); send it as one boundary=TEXT.")
    return unquote(given.get("boundary", "")).encode("latin-1")


def names_of(disposition: str) -> dict[str, str]:
    """Returns the decoded parameters of a Content-Disposition: `name` and `filename`, where it has them.

    A name may be in UTF-8 or Latin-1, with quoted pairs, with a browser's %22, in percent-encoded UTF-8 (RFC 7578,
    section 2) or in encoded words (RFC 2047). `filename*` (RFC 8187) and continuations (RFC 2231) take precedence over
    `filename`, as RFC 6266 has it, unless they cannot be decoded.

    Args:
        disposition: the header's value, decoded as Latin-1.

    Raises:
        MalformedUpload: it has too many parameters.
    """
    if found := _ORDINARY.fullmatch(disposition):
        return {key: value for key, value in found.groupdict().items() if value is not None}
    given = {key: value for key, value in _parameters(disposition).items() if key.partition("*")[0] in _NAMES}
    # `decode_params` of Python 3.11 fails if there is both `filename*` and `filename*0`; the former is the whole name.
    for name in _NAMES:
        if f"{name}*" in given:
            given = {key: value for key, value in given.items() if not key.startswith(f"{name}*") or key == f"{name}*"}
    names: dict[str, str] = {}
    for name, value in decode_params([("", ""), *given.items()])[1:]:  # plain values come first
        if isinstance(value, tuple):
            charset, raw = str(value[0]), unquote(value[2]).encode("latin-1")
            decoded = _in_charset(raw, charset)
            names[name] = decoded or names.get(name) or _decoded(raw)
        else:
            names[name] = _plain(unquote(value))
    if (path := names.get("filename", ""))[1:3] == ":\\" or path.startswith("\\\\"):
        names["filename"] = path.rpartition("\\")[2]  # old browsers on Windows send the whole path
    return names


def _parameters(header: str) -> dict[str, str]:
    """Returns the parameters of a header as they stand; of several with one name, the last."""
    if (count := header.count(";")) > _MAX_SEMICOLONS:
        raise MalformedUpload(f"A header of the form has {count} semicolons; the limit is {_MAX_SEMICOLONS}.")
    return {name.lower(): value.rstrip(" \t") for name, value in _PARAMETER.findall(header)}


def _plain(text: str) -> str:
    """Decodes a name without charset, which is decoded as Latin-1."""
    if len(text) > _MAX_ENCODED:
        return _decoded(text.encode("latin-1"))
    if _ENCODED_WORDS.fullmatch(text):
        with suppress(HeaderParseError):
            words = [_in_charset(word, str(charset)) for word, charset in decode_header(text)]
            if all(words):
                return "".join(map(str, words))
    # A name that is ASCII once decoded, such as `50%20off.jpg`, is more likely the file's own.
    if text.isascii() and not (raw := unquote_to_bytes(text)).isascii() and (decoded := _in_charset(raw, "utf-8")):
        return decoded
    return _decoded(_BROWSERS_ESCAPE.sub(lambda found: chr(int(found[0][1:], 16)), text).encode("latin-1"))


def _in_charset(raw: bytes, charset: str) -> str | None:
    if charset.lower() in _CHARSETS:
        with suppress(UnicodeDecodeError):
            return raw.decode(charset)
    return None


def _decoded(raw: bytes) -> str:
    """Decodes a name as UTF-8, or as Latin-1, which older clients send and which accepts any bytes."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
