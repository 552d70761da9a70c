"""Parses a multipart form chunk by chunk and collects its files."""

import re
from dataclasses import dataclass
from typing import Final

from python_multipart.multipart import MAX_BOUNDARY_LENGTH, parse_options_header

from serve.errors import MalformedUpload, MissingFile, TooManyFiles

FILE_PART: Final = "file"
# Other form fields are skipped; a page may send a few, an attacker thousands.
_MAX_OTHER_PARTS: Final = 32
_MAX_PART_HEADERS: Final = 8
_MAX_PART_HEADER_BYTES: Final = 4096 + 128
# All headers of a part, each with the line end before it, and the blank line after them.
_MAX_HEADER_BLOCK_BYTES: Final = _MAX_PART_HEADERS * (2 + _MAX_PART_HEADER_BYTES) + 4
_HEADER_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# A parameter of a header takes a microsecond to read, and a form can have sixty headers full of them.
_MAX_SEMICOLONS: Final = 32
# Blanks between a boundary and the end of its line; mail gateways add them.
_MAX_PADDING: Final = 256
# Lines that begin with the boundary but go on otherwise. RFC 2046 does not allow them; each takes a microsecond.
_MAX_NEAR_BOUNDARIES: Final = 64
_LONGEST_NAME: Final = 255
_SHOWN_NAME_CHARACTERS: Final = 40


@dataclass(frozen=True)
class UploadedFile:
    """One encoded file; `filename` is the client's, and empty if the client sent none."""

    filename: str
    data: bytes


class Form:
    """Parses a multipart body as it arrives: keeps the parts named `file`, counts and skips the others.

    Each search continues where the last one ended, so that the time taken is proportional to the body's size. The
    methods raise `MalformedUpload`, `MissingFile` and `TooManyFiles`.
    """

    def __init__(self, content_type: str, max_files: int) -> None:
        boundary = _parameters(content_type).get(b"boundary", b"")
        if not boundary:
            raise MalformedUpload(
                "The Content-Type multipart/form-data lacks its boundary; let the client set the header."
            )
        if len(boundary) > MAX_BOUNDARY_LENGTH:
            raise MalformedUpload(
                f"The boundary of the multipart body has {len(boundary)} bytes; the limit is {MAX_BOUNDARY_LENGTH}"
                " bytes."
            )
        self._max_files = max_files
        self._files: list[UploadedFile] = []
        self._other_names: list[str] = []
        self._boundary = boundary
        # The first boundary may follow any line end, or none at all.
        self._delimiter = b"\n--" + boundary
        self._buffer = bytearray(b"\n")
        self._searched = 0  # where the next search of the buffer starts
        self._near_boundaries = 0
        # Not a bound method, which would make a cycle and keep the files until the garbage collector runs.
        self._step = Form._read_data
        self._is_file = False
        self._begun = False
        self._complete = False

    def feed(self, chunk: bytes) -> None:
        """Parses the next chunk; whatever follows the closing boundary is skipped."""
        if not self._complete:
            self._buffer += chunk
        while not self._complete and self._step(self):
            pass

    def end(self) -> list[UploadedFile]:
        """Returns the files, at least one, in the order sent; call it at the end of the body."""
        if not self._begun:
            raise MalformedUpload("The multipart body is malformed: none of its lines is its boundary.")
        if not self._complete:
            raise MalformedUpload("The multipart body ends before its closing boundary.")
        if not self._files:
            names = ", ".join(repr(name[:_SHOWN_NAME_CHARACTERS]) for name in self._other_names)
            sent = f"; the parts sent are named {names}" if names else ""
            raise MissingFile(f"The form has no part named '{FILE_PART}'{sent}. With curl: -F 'file=@cat.jpg'.")
        return self._files

    def _read_data(self) -> bool:
        """Reads past the next delimiter; returns False if more data is needed."""
        at = self._buffer.find(self._delimiter, self._searched)
        if at < 0:
            self._searched = max(0, len(self._buffer) - len(self._delimiter) + 1)
            if not self._is_file:
                self._drop(self._searched)
            return False
        after = at + len(self._delimiter)
        line = self._buffer[after : after + _MAX_PADDING + 2]
        padding = len(line) - len(line.lstrip(b" \t"))
        end = line[padding : padding + 2]
        if len(end) < 2 and padding <= _MAX_PADDING:
            self._searched = at
            return False
        if end == b"\r\n" or line.startswith(b"--"):
            self._end_part(at)
            self._drop(after + padding)
            self._complete = end != b"\r\n"
            self._begun, self._is_file = True, False
            self._delimiter, self._step = b"\r\n--" + self._boundary, Form._read_headers
            return True
        self._near_boundaries += 1
        if padding or self._near_boundaries > _MAX_NEAR_BOUNDARIES:
            raise _malformed()
        self._searched = after
        return True

    def _read_headers(self) -> bool:
        """Reads a part's headers, each with the line end before it; returns False if more data is needed."""
        end = self._buffer.find(b"\r\n\r\n", self._searched)
        if end < 0 and len(self._buffer) <= _MAX_HEADER_BLOCK_BYTES:
            self._searched = max(0, len(self._buffer) - 3)
            return False
        lines = bytes(self._buffer[:end]).split(b"\r\n", _MAX_PART_HEADERS + 1)[1:]
        if len(lines) > _MAX_PART_HEADERS:
            raise MalformedUpload(f"A part has more headers than the limit of {_MAX_PART_HEADERS}.")
        disposition = b""
        for line in lines:
            if len(line) > _MAX_PART_HEADER_BYTES:
                raise MalformedUpload(f"A header of a part is longer than the limit of {_MAX_PART_HEADER_BYTES} bytes.")
            name, colon, value = line.partition(b":")
            if not colon or not _HEADER_NAME.fullmatch(name) or b"\r" in value:
                raise _malformed()
            if name.lower() == b"content-disposition":
                disposition = value
        self._begin_part(_parameters(disposition))
        self._drop(end + 4)
        self._step = Form._read_data
        return True

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._searched = 0

    def _begin_part(self, options: dict[bytes, bytes]) -> None:
        if b"name" not in options:
            raise MalformedUpload("A part of the multipart body has no name in its Content-Disposition.")
        name = _decoded(options[b"name"])
        self._has_filename = b"filename" in options
        self._filename = _decoded(options.get(b"filename", b""))
        self._is_file = name == FILE_PART
        if not self._is_file:
            self._other_names.append(name)
        if len(self._files) + self._is_file > self._max_files:
            raise TooManyFiles(f"The request has more files than the limit of {self._max_files}.")
        if len(self._other_names) > _MAX_OTHER_PARTS:
            raise TooManyFiles(f"The form has more than {_MAX_OTHER_PARTS} parts not named '{FILE_PART}'.")

    def _end_part(self, length: int) -> None:
        if self._is_file:
            with memoryview(self._buffer) as view:
                data = bytes(view[:length])
            if not self._has_filename:
                _refuse_a_mere_name(data)
            self._files.append(UploadedFile(self._filename, data))


def _refuse_a_mere_name(data: bytes) -> None:
    """Refuses the name of a file in its place, which `curl -F file=cat.jpg` sends for lack of an @."""
    if 0 < len(data) <= _LONGEST_NAME and data.isascii():
        text = data.decode("ascii")
        if text.isprintable():
            raise MissingFile(
                f"The part '{FILE_PART}' is the text {text!r}, not a file; with curl, write -F 'file=@{text}'."
            )


def _parameters(header: str | bytes) -> dict[bytes, bytes]:
    """Returns the parameters of a Content-Type or Content-Disposition."""
    text = header.decode("latin-1") if isinstance(header, bytes) else header
    if (count := text.count(";")) > _MAX_SEMICOLONS:
        raise MalformedUpload(f"A header of the form has {count} semicolons; the limit is {_MAX_SEMICOLONS}.")
    return parse_options_header(text)[1]


def _malformed() -> MalformedUpload:
    return MalformedUpload("The multipart body is malformed.")


def _decoded(raw: bytes) -> str:
    """Decodes a name as UTF-8, or as Latin-1, which older clients send and which accepts any bytes."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
