"""Reads the files of a request from its body, chunk by chunk, and stops at the first byte over a limit.

An image is sent as a multipart form, as `image/*` or as `application/octet-stream`. Where the Content-Type says
nothing, because many clients send none, or by default that of HTML forms, the first bytes tell.
"""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from serve.api.form import Form, UploadedFile, encoded
from serve.errors import EmptyFile, UnboundedBody, UnsupportedBody, UploadTooLarge
from serve.imaging.formats import SIGNATURE_BYTES, sniff_format
from serve.imaging.non_images import HEAD_BYTES, describe_non_image

_SHOWN_CHARACTERS: Final = 40
_STATES_AN_IMAGE: Final = re.compile("image/.*|application/octet-stream")
# What is no media type, that of HTML forms, which curl and others send by default, and those for what is unknown.
_STATES_NOTHING: Final = re.compile(
    r"(?![\w.+-]+/[\w.+-]+$).*|application/x-www-form-urlencoded|binary/octet-stream|application/(?:x-)?binary"
    r"|[\w-]+/(?:x-)?unknown",
    re.DOTALL,
)
# What programs send for a string; a data URI or base64 in one is told so.
_STATES_TEXT: Final = {"text/plain", "application/json"}
# The fields of an HTML form without files.
_FIELD: Final = re.compile(rb"(?:^|&)[\w.\[\]%+-]+=([^&]+)")
# A Content-Encoding that lists no coding.
_IDENTITY: Final = re.compile(r"[ \t,]*+(?:identity[ \t]*+(?:,[ \t,]*+|$))*+", re.IGNORECASE)
_BODY_HEADERS: Final = ("content-length", "transfer-encoding")  # a request with neither has no body
# Digits of a Content-Length; without leading zeros, the HTTP parser accepts at most twenty.
_MAX_DIGITS: Final = 20


@dataclass(frozen=True)
class UploadLimits:
    """The most bytes a body may have, and the most files."""

    max_bytes: int
    max_files: int


async def read_upload(
    headers: Mapping[str, str], chunks: AsyncIterator[bytes], limits: UploadLimits
) -> list[UploadedFile]:
    """Reads a request's files, at least one, in the order sent.

    Args:
        headers: the request's headers, with lower-case lookup.
        chunks: its body, which is read no further than the limits allow.
        limits: for the body and its files.

    Raises:
        UnsupportedBody: the body is neither a form nor an image, or is compressed.
        UnboundedBody: the body has neither a length nor chunked encoding.
        UploadTooLarge: the body is larger than the limit.
        EmptyFile: the body is empty.
        RequestError: whatever `Form` raises.
    """
    content_type = headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip(" \t").lower()
    if media_type == "multipart/form-data":
        form = Form(content_type, limits.max_files)
        async for chunk in _bounded(headers, chunks, limits.max_bytes):
            form.feed(chunk)
        return form.end()
    check = None if _STATES_AN_IMAGE.fullmatch(media_type) else partial(_require_image, media_type)
    has_body = any(name in headers for name in _BODY_HEADERS)
    if check and not (has_body and _STATES_NOTHING.fullmatch(media_type)):
        # A client that waits for 100 Continue is spared the upload.
        is_text = has_body and media_type in _STATES_TEXT and "expect" not in headers
        raise _no_image(media_type, await _head(chunks) if is_text else b"")
    data = await read_body(headers, chunks, limits.max_bytes, check)
    if not data:
        raise EmptyFile("The body is empty; send the image's bytes.")
    return [UploadedFile("", data)]


async def read_body(
    headers: Mapping[str, str],
    chunks: AsyncIterator[bytes],
    max_bytes: int,
    check: Callable[[bytes], None] | None = None,
) -> bytes:
    """Reads a request's whole body, of any kind; raises `UnsupportedBody`, `UnboundedBody` and `UploadTooLarge`.

    Args:
        check: called once with the start of the body, `SIGNATURE_BYTES` or more unless the body is shorter.
    """
    data = bytearray()
    async for chunk in _bounded(headers, chunks, max_bytes):
        unchecked = len(data) < SIGNATURE_BYTES
        data += chunk
        if check and unchecked and len(data) >= SIGNATURE_BYTES:
            check(bytes(data))
    if check and len(data) < SIGNATURE_BYTES:
        check(bytes(data))
    return bytes(data)


async def _bounded(headers: Mapping[str, str], chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    """Yields the chunks of an uncompressed body, and raises `UploadTooLarge` before the first one over the limit."""
    _require_unencoded(headers)
    length = headers.get("content-length")
    if length is None and "transfer-encoding" not in headers:
        raise UnboundedBody("The request has neither Content-Length nor chunked Transfer-Encoding.")
    too_large = UploadTooLarge(f"The body is larger than the limit of {max_bytes} bytes per request.")
    if length is not None:
        if len(length) > _MAX_DIGITS:  # may all be zeros; `int` refuses thousands of them
            raise UploadTooLarge(f"The Content-Length has {len(length)} digits; the limit is {_MAX_DIGITS} digits.")
        if int(length) > max_bytes:  # the HTTP parser has let only digits through
            raise too_large
    received = 0
    async for chunk in chunks:
        received += len(chunk)
        if received > max_bytes:
            raise too_large
        yield chunk


def _require_unencoded(headers: Mapping[str, str]) -> None:
    value = ",".join(value for name, value in headers.items() if name == "content-encoding")
    if not _IDENTITY.fullmatch(value):
        raise encoded("body", "Content-Encoding", value)


def _require_image(media_type: str, head: bytes) -> None:
    """Raises `UnsupportedBody` unless a body of this media type, which is no image's, begins like an image."""
    if not sniff_format(head):
        raise _no_image(media_type, head)


async def _head(chunks: AsyncIterator[bytes]) -> bytes:
    """Reads the start of a body, which need not be an image's."""
    head = b""
    async for chunk in chunks:
        head += chunk
        if len(head) >= SIGNATURE_BYTES:
            break
    return head


def _no_image(media_type: str, head: bytes) -> UnsupportedBody:
    """Returns the error of a body that is neither a form nor an image, with what it is by its first bytes."""
    told = f"The Content-Type {media_type[:_SHOWN_CHARACTERS]!r} is neither a multipart form nor an image."
    if not media_type:
        told = "The request has no Content-Type."
    wanted = (
        "Send multipart/form-data with a part named 'file' (curl -F 'file=@cat.jpg'), or the image itself as image/*."
    )
    for value in _FIELD.findall(head[:HEAD_BYTES]):
        if found := describe_non_image(value):
            return UnsupportedBody(f"{told} {wanted} The body holds {found.what}; {found.advice}.")
    found = describe_non_image(head)
    return UnsupportedBody(f"{told} {wanted}" + (f" The body is {found.what}; {found.advice}." if found else ""))
