"""Reads the files of a request from its body, chunk by chunk, and stops at the first byte over a limit.

An image is sent as a multipart form, as `image/*` or as `application/octet-stream`. Where the Content-Type says
nothing, because many clients send none, or by default that of HTML forms, the first bytes tell.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from serve.api.exchange import Exchange
from serve.api.form import Form, UploadedFile, encoded
from serve.errors import EmptyFile, UnboundedBody, UnsupportedBody, UploadTooLarge
from serve.imaging.formats import SIGNATURE_BYTES, Data, sniff_format
from serve.imaging.non_images import HEAD_BYTES, describe_non_image
from serve.scheduling.in_flight import InFlightRequest
from serve.scheduling.upload_budget import UploadBudget

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
_BODY_HEADERS: Final = (b"content-length", b"transfer-encoding")  # a request with neither has no body
_SMALL_BYTES: Final = 64 * 1024  # of a body so far
# Digits of a Content-Length; without leading zeros, the HTTP parser accepts at most twenty.
_MAX_DIGITS: Final = 20


@dataclass(frozen=True)
class UploadLimits:
    """The most bytes a body may have, and the most files."""

    max_bytes: int
    max_files: int


class Body:
    """A request's body, read chunk by chunk within the limits on its length, its rate and all uploads together.

    Args:
        exchange: the request.
        in_flight: the same request, as the budget knows it.
        max_bytes: the most that it may have.
        uploads: the budget; its pacer admits the computation on each chunk, which the reader of `next_chunk` does.

    Raises:
        UnsupportedBody: the body is compressed.
        UnboundedBody: it has neither a length nor chunked encoding.
        UploadTooLarge: its length is over the limit.
    """

    def __init__(self, exchange: Exchange, in_flight: InFlightRequest, max_bytes: int, uploads: UploadBudget) -> None:
        self._exchange = exchange
        self._in_flight = in_flight
        self._uploads = uploads
        self._max_bytes = max_bytes
        self._began = 0.0  # the computation on the last chunk
        if b"content-encoding" in exchange.headers:
            _require_unencoded(exchange)
        length = exchange.headers.get(b"content-length")
        if length is None and b"transfer-encoding" not in exchange.headers:
            raise UnboundedBody("The request has neither Content-Length nor chunked Transfer-Encoding.")
        if length is not None:
            if len(length) > _MAX_DIGITS:  # may all be zeros; `int` refuses thousands of them
                raise UploadTooLarge(f"The Content-Length has {len(length)} digits; the limit is {_MAX_DIGITS} digits.")
            if int(length) > max_bytes:  # the HTTP parser has let only digits through
                raise self._too_large()

    async def next_chunk(self) -> bytes:
        """Returns the next bytes, and nothing at the end.

        Raises:
            UploadTooLarge: the body is larger than the limit.
            UploadsFull: there is no room for these bytes.
        """
        if self._began:
            self._uploads.pacer.spend(time.perf_counter() - self._began)
        chunk = await self._exchange.next_chunk()
        if chunk:
            if self._exchange.record.bytes_in > self._max_bytes:
                raise self._too_large()
            self._uploads.take(self._in_flight, len(chunk))
            if self._uploads.pacer.exhausted:
                await self._uploads.pacer.wait_for_turn()
            self._began = time.perf_counter()
        return chunk

    async def read(self, check: Callable[[bytes], None] | None = None) -> Data:
        """Returns the whole body.

        Args:
            check: called once with the start of the body, `SIGNATURE_BYTES` or more unless the body is shorter.
        """
        data: Data = b""  # adding to a small body is quickest with bytes, to a large one with a bytearray
        while chunk := await self.next_chunk():
            unchecked = len(data) < SIGNATURE_BYTES
            if len(data) > _SMALL_BYTES and isinstance(data, bytes):
                data = bytearray(data)
            data += chunk
            if check and unchecked and len(data) >= SIGNATURE_BYTES:
                check(bytes(data[: HEAD_BYTES + 1]))
        if check and len(data) < SIGNATURE_BYTES:
            check(bytes(data))
        return data

    def _too_large(self) -> UploadTooLarge:
        return UploadTooLarge(f"The body is larger than the limit of {self._max_bytes} bytes per request.")


async def read_upload(
    exchange: Exchange, in_flight: InFlightRequest, limits: UploadLimits, uploads: UploadBudget
) -> list[UploadedFile]:
    """Reads a request's files, at least one, in the order sent.

    Args:
        exchange: the request, whose body is read no further than the limits allow.
        in_flight: as for `Body`, like `uploads`.
        limits: for the body and its files.

    Raises:
        UnsupportedBody: the body is neither a form nor an image, or is compressed.
        EmptyFile: the body is empty.
        RequestError: whatever `Body` and `Form` raise.
    """
    content_type = exchange.header(b"content-type")
    media_type = content_type.partition(";")[0].strip(" \t").lower()
    if media_type == "multipart/form-data":
        form = Form(content_type, limits.max_files)
        body = Body(exchange, in_flight, limits.max_bytes, uploads)
        while chunk := await body.next_chunk():
            form.feed(chunk)
        return form.end()
    check = None if _STATES_AN_IMAGE.fullmatch(media_type) else partial(_require_image, media_type)
    has_body = any(name in exchange.headers for name in _BODY_HEADERS)
    if check and not (has_body and _STATES_NOTHING.fullmatch(media_type)):
        # A client that waits for 100 Continue is spared the upload.
        is_text = has_body and media_type in _STATES_TEXT and b"expect" not in exchange.headers
        raise _no_image(media_type, await _head(exchange) if is_text else b"")
    data = await Body(exchange, in_flight, limits.max_bytes, uploads).read(check)
    if not data:
        raise EmptyFile("The body is empty; send the image's bytes.")
    return [UploadedFile("", data)]


def _require_unencoded(exchange: Exchange) -> None:
    value = ",".join(exchange.header_list(b"content-encoding"))
    if not _IDENTITY.fullmatch(value):
        raise encoded("body", "Content-Encoding", value)


def _require_image(media_type: str, head: bytes) -> None:
    """Raises `UnsupportedBody` unless a body of this media type, which is no image's, begins like an image."""
    if not sniff_format(head):
        raise _no_image(media_type, head)


async def _head(exchange: Exchange) -> bytes:
    """Reads the start of a body, which need not be an image's."""
    head = b""
    while len(head) < SIGNATURE_BYTES and (chunk := await exchange.next_chunk()):
        head += chunk
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
