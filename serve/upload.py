"""Request body, chunk by chunk → the files in it, within the limits; what goes over them is never kept.

Knows the three ways of sending a picture, but no web framework: it reads any async iterator of bytes.
Errors that leave here: `UnsupportedBody`, `UnboundedBody`, `MalformedUpload`, `MissingFile`, `EmptyFile`,
`UploadTooLarge`, `TooManyFiles`.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MAX_BOUNDARY_LENGTH, MultipartParser, parse_options_header

from serve.errors import (
    EmptyFile,
    MalformedUpload,
    MissingFile,
    TooManyFiles,
    UnboundedBody,
    UnsupportedBody,
    UploadTooLarge,
)

FILE_PART: Final = "file"
# Other form fields are read over and dropped; a page may send a few, an attacker thousands.
_MAX_OTHER_PARTS: Final = 32
# Of one part; the parser's own defaults, said here because it tells which was broken by its words alone.
_MAX_PART_HEADERS: Final = 8
_MAX_PART_HEADER_BYTES: Final = 4096 + 128
_BROKEN_LIMITS: Final = {
    "Maximum header count exceeded": f"A part has more headers than the limit of {_MAX_PART_HEADERS}.",
    "Maximum header size exceeded": f"A header of a part is longer than the limit of {_MAX_PART_HEADER_BYTES} bytes.",
}
_SHOWN_NAME_CHARACTERS: Final = 40
_LONGEST_NAME: Final = 255
# Of a Content-Length; the longest number that the HTTP parser lets through has twenty without its leading noughts.
_MOST_DIGITS: Final = 20


@dataclass(frozen=True)
class UploadedFile:
    """One encoded file; `filename` as the client gave it, empty where it gave none."""

    filename: str
    data: bytes


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
    media_type, options = parse_options_header(headers.get("content-type", ""))
    multipart = media_type == b"multipart/form-data"
    if not (multipart or media_type.startswith(b"image/") or media_type == b"application/octet-stream"):
        raise UnsupportedBody(_unsupported(media_type.decode("latin-1")))
    if multipart:
        bounded = _bounded(headers, chunks, limits.max_bytes)
        return await _read_multipart(options.get(b"boundary", b""), bounded, limits.max_files)
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


async def _read_multipart(boundary: bytes, chunks: AsyncIterator[bytes], max_files: int) -> list[UploadedFile]:
    if not boundary:
        raise MalformedUpload("The Content-Type multipart/form-data lacks its boundary; let the client set the header.")
    if len(boundary) > MAX_BOUNDARY_LENGTH:
        raise MalformedUpload(
            f"The boundary of the multipart body has {len(boundary)} bytes; the limit is {MAX_BOUNDARY_LENGTH} bytes."
        )
    collector = _PartCollector(max_files)
    try:
        parser = MultipartParser(
            boundary,
            collector.callbacks(),  # type: ignore[arg-type]  # its TypedDict asks for all
            max_header_count=_MAX_PART_HEADERS,
            max_header_size=_MAX_PART_HEADER_BYTES,
        )
        async for chunk in chunks:
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise MalformedUpload(_BROKEN_LIMITS.get(str(error), "The multipart body is malformed.")) from error
    if not collector.complete:
        raise MalformedUpload("The multipart body ends before its closing boundary.")
    if not collector.files:
        names = ", ".join(repr(name[:_SHOWN_NAME_CHARACTERS]) for name in collector.other_names)
        sent = f"; the parts sent are named {names}" if names else ""
        raise MissingFile(f"The form has no part named '{FILE_PART}'{sent}. With curl: -F 'file=@cat.jpg'.")
    return collector.files


class _PartCollector:
    """What the multipart parser calls back into: keeps the parts named `file`, counts and drops the others."""

    def __init__(self, max_files: int) -> None:
        self.files: list[UploadedFile] = []
        self.other_names: list[str] = []
        self.complete = False
        self._max_files = max_files
        self._header_name = b""
        self._header_value = b""
        self._filename = ""
        self._has_filename = False
        self._is_file = False
        self._data = bytearray()

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header_name,
            "on_header_value": self._add_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._disposition = b""
        self._data = bytearray()

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise MalformedUpload("A part of the multipart body has no name in its Content-Disposition.")
        name = _decoded(options[b"name"])
        self._has_filename = b"filename" in options
        self._filename = _decoded(options.get(b"filename", b""))
        self._is_file = name == FILE_PART
        if not self._is_file:
            self.other_names.append(name)
        if len(self.files) + self._is_file > self._max_files:
            raise TooManyFiles(f"The request has more files than the limit of {self._max_files}.")
        if len(self.other_names) > _MAX_OTHER_PARTS:
            raise TooManyFiles(f"The form has more than {_MAX_OTHER_PARTS} parts not named '{FILE_PART}'.")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._data += memoryview(data)[start:end]

    def _end_part(self) -> None:
        if self._is_file:
            self._refuse_a_mere_name()
            self.files.append(UploadedFile(self._filename, bytes(self._data)))
        self._data = bytearray()

    def _refuse_a_mere_name(self) -> None:
        """`curl -F file=cat.jpg`, without the @, sends the name in place of the file."""
        if not self._has_filename and 0 < len(self._data) <= _LONGEST_NAME and self._data.isascii():
            text = self._data.decode("ascii")
            if text.isprintable():
                raise MissingFile(
                    f"The part '{FILE_PART}' holds the text {text!r} and no file; with curl, write -F 'file=@{text}'."
                )

    def _end(self) -> None:
        self.complete = True


def _decoded(raw: bytes) -> str:
    """Names are UTF-8 in forms sent today and Latin-1 in old ones, which decodes anything."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _unsupported(media_type: str) -> str:
    wanted = (
        "Send multipart/form-data with a part named 'file' (curl -F 'file=@cat.jpg'), or the picture itself as image/*."
    )
    if not media_type:
        return f"The request has no Content-Type. {wanted}"
    return f"The Content-Type {media_type[:_SHOWN_NAME_CHARACTERS]!r} is neither a form nor a picture. {wanted}"
