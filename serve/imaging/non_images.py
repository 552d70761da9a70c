"""Says what a file that is no image is instead, for the things that clients send in an image's place by mistake."""

import re
from base64 import b64decode
from contextlib import suppress
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from serve.imaging.formats import Data, sniff_format

_LONGEST_NAME: Final = 255
# What `curl -F file=cat.jpg` sends: a path, or a name with an extension.
_PATH: Final = re.compile(r"[@<]?[^<>]*(?:[/\\][^<>]*|\.[a-zA-Z]\w{1,4})")
HEAD_BYTES: Final = 256
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class NonImage(NamedTuple):
    """What the data is, such as `a data URI`, and what the client should do."""

    what: str
    advice: str


_NOT_FETCHED: Final = "this server fetches nothing: send the bytes of the image"
_DECODE: Final = "decode it and send the bytes"
MISSING: Final = "send the bytes of the file, which the client's variable does not hold"
# Matched against the whole head, without blanks and quotes around it.
_KINDS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), NonImage(what, advice))
    for pattern, what, advice in (
        (rb"\x1f\x8b.*", "a file compressed with gzip", "send it uncompressed"),
        (rb"data:.*|[\w.+/-]*;?base64,.*", "a data URI", _DECODE),
        (rb"blob:.*|[a-z][a-z0-9+.-]+:/.*|www\.[\w-]+\..*|//[\w-]+(?:\.[\w-]+)+/.*", "a URL", _NOT_FETCHED),
        (rb"undefined|null|none|nil|nan|true|false", "the word {text}", MISSING),
        (
            rb"\[object \w+\]|<[\w.]+:? [^<>]*[^/]>|(?:\[B|(?:\w+\.)+[\w$]+)@[0-9a-f]+|system\.[\w.\[\]]+",
            "the text {text}",
            MISSING,
        ),
        (rb"b['\"].*", "bytes written as a Python literal", MISSING),
        (rb"--[^\r\n]+\r\ncontent-[\w-]+:.*", "a multipart form", "let the client set its Content-Type"),
        (rb'[\[{]\s*(?:"[^"]*"\s*:\s*)?"data:.*', "JSON that holds a data URI", _DECODE),
        (rb"[\[{]\s*[\"\d{\[].*", "JSON", "send the bytes of the image as a form or as the body"),
    )
)
# One line, or lines as long as programs break them, the last one cut.
_BASE64: Final = re.compile(rb"(?:[\w+/=-]{60,}+\s*+)++[\w+/=-]*")


def describe_non_image(data: Data) -> NonImage | None:
    """Returns what `data` is by its first bytes; None if it begins like an accepted format, or like nothing known."""
    if sniff_format(data):
        return None
    data = bytes(data[: HEAD_BYTES + 1])
    head = unquote_to_bytes(data[:HEAD_BYTES].removeprefix(_BYTE_ORDER_MARK)).strip(b' \t\r\n"')
    for pattern, (what, advice) in _KINDS:
        if pattern.fullmatch(head):
            return NonImage(what.format(text=repr(head.decode("latin-1"))), advice)
    digits = b"".join(head.split())
    for name, decode in (("hexadecimal digits", _from_hex), ("base64", _from_base64)):
        with suppress(ValueError):
            if encoded := sniff_format(decode(digits)):
                return NonImage(f"the {name} of a {encoded} image", _DECODE)
    looks_encoded = len(data) > HEAD_BYTES and _BASE64.fullmatch(head)
    return NonImage("what looks like base64", _DECODE) if looks_encoded else None


def describe_text(data: Data) -> NonImage | None:
    """Recognises a short text in place of a file, such as its name, which curl sends for lack of an @."""
    with suppress(UnicodeDecodeError):
        text = data.decode("utf-8").strip() if len(data) <= _LONGEST_NAME else ""
        if text and text.isprintable():
            if _PATH.fullmatch(text):
                return NonImage(f"the text {text!r}", f"with curl, write -F 'file=@{text.lstrip('@<')}'")
            if text.startswith("<") and text.endswith(">"):
                return NonImage("text in a markup language", "send the bytes of an image")
            return NonImage(f"the text {text!r}", MISSING)
    return None


def _from_hex(digits: bytes) -> bytes:
    return bytes.fromhex(digits[: len(digits) // 2 * 2].decode())


def _from_base64(digits: bytes) -> bytes:
    return b64decode(digits[: len(digits) // 4 * 4].translate(bytes.maketrans(b"-_", b"+/")), validate=True)
