"""Reads the files of a request from its body, chunk by chunk, and stops at the first byte over a limit.

An image is sent as a multipart form, as `image/*` or as `application/octet-stream`.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

from serve.api.form import Form, UploadedFile
from serve.errors import EmptyFile, UnboundedBody, UnsupportedBody, UploadTooLarge

_SHOWN_CHARACTERS: Final = 40
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
        UnsupportedBody: the body is neither a form nor an image.
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
    if not (media_type.startswith("image/") or media_type == "application/octet-stream"):
        raise UnsupportedBody(_unsupported(media_type))
    data = await read_body(headers, chunks, limits.max_bytes)
    if not data:
        raise EmptyFile("The body is empty; send the image's bytes.")
    return [UploadedFile("", data)]


async def read_body(headers: Mapping[str, str], chunks: AsyncIterator[bytes], max_bytes: int) -> bytes:
    """Reads a request's whole body, of any kind; raises `UnboundedBody` and `UploadTooLarge`."""
    data = bytearray()
    async for chunk in _bounded(headers, chunks, max_bytes):
        data += chunk
    return bytes(data)


async def _bounded(headers: Mapping[str, str], chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    """Yields the chunks, and raises `UploadTooLarge` before the first one that goes over the limit."""
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


def _unsupported(media_type: str) -> str:
    wanted = (
        "Send multipart/form-data with a part named 'file' (curl -F 'file=@cat.jpg'), or the image itself as image/*."
    )
    if not media_type:
        return f"The request has no Content-Type. {wanted}"
    return f"The Content-Type {media_type[:_SHOWN_CHARACTERS]!r} is neither a multipart form nor an image. {wanted}"
