"""Request body, chunk by chunk → the files in it, within the limits; what goes over them is never kept.

Knows the three ways of sending a picture, but no web framework: it reads any async iterator of bytes.
Errors that leave here: `UnsupportedBody`, `UnboundedBody`, `EmptyFile`, `UploadTooLarge`, and those of a `Form`.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

from serve.api.form import Form, UploadedFile
from serve.errors import EmptyFile, UnboundedBody, UnsupportedBody, UploadTooLarge

_SHOWN_CHARACTERS: Final = 40
# Of a Content-Length; the longest number that the HTTP parser lets through has twenty without its leading noughts.
_MOST_DIGITS: Final = 20


@dataclass(frozen=True)
class UploadLimits:
    """Bytes a body may have, files it may carry."""

    max_bytes: int
    max_files: int


async def read_upload(
    headers: Mapping[str, str], chunks: AsyncIterator[bytes], limits: UploadLimits
) -> list[UploadedFile]:
    """Read one request's files, at least one, in the order sent.

    headers: the request's, with lower-case lookup. chunks: its body, read no further than the limits allow.
    """
    content_type = headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip(" \t").lower()
    multipart = media_type == "multipart/form-data"
    if not (multipart or media_type.startswith("image/") or media_type == "application/octet-stream"):
        raise UnsupportedBody(_unsupported(media_type))
    if multipart:
        form = Form(content_type, limits.max_files)
        async for chunk in _bounded(headers, chunks, limits.max_bytes):
            form.feed(chunk)
        return form.end()
    data = await read_body(headers, chunks, limits.max_bytes)
    if not data:
        raise EmptyFile("The body is empty; send the picture's bytes.")
    return [UploadedFile("", data)]


async def read_body(headers: Mapping[str, str], chunks: AsyncIterator[bytes], max_bytes: int) -> bytes:
    """One request's whole body, whatever it is; raises `UnboundedBody` and `UploadTooLarge`."""
    data = bytearray()
    async for chunk in _bounded(headers, chunks, max_bytes):
        data += chunk
    return bytes(data)


async def _bounded(headers: Mapping[str, str], chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    """The same chunks, ending with `UploadTooLarge` before the first byte over the limit is handed on."""
    length = headers.get("content-length")
    if length is None and "transfer-encoding" not in headers:
        raise UnboundedBody("The request has neither Content-Length nor chunked Transfer-Encoding.")
    too_large = UploadTooLarge(f"The body is larger than the limit of {max_bytes} bytes a request.")
    if length is not None:
        if len(length) > _MOST_DIGITS:  # which may all be noughts, and thousands of them are more than `int` takes
            raise UploadTooLarge(f"The Content-Length has {len(length)} digits; the limit is {_MOST_DIGITS} digits.")
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
        "Send multipart/form-data with a part named 'file' (curl -F 'file=@cat.jpg'), or the picture itself as image/*."
    )
    if not media_type:
        return f"The request has no Content-Type. {wanted}"
    return f"The Content-Type {media_type[:_SHOWN_CHARACTERS]!r} is neither a form nor a picture. {wanted}"
