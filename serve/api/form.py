"""Parses a multipart form chunk by chunk and collects its files."""

import re
from dataclasses import dataclass
from typing import Final

from serve.api.header_parameters import boundary_of, names_of
from serve.errors import MalformedUpload, MissingFile, TooManyFiles, UnsupportedBody
from serve.imaging.formats import Data
from serve.imaging.non_images import HEAD_BYTES, describe_non_image, describe_text

FILE_PART: Final = "file"
# RFC 2046 allows 70 bytes.
_MAX_BOUNDARY_BYTES: Final = 256
# Other form fields are skipped; a page may send a few, an attacker thousands.
_MAX_OTHER_PARTS: Final = 32
_MAX_PART_HEADERS: Final = 8
_MAX_PART_HEADER_BYTES: Final = 4096 + 128
# All headers of a part, each with the line end before it, and the blank line after them.
_MAX_HEADER_BLOCK_BYTES: Final = _MAX_PART_HEADERS * (2 + _MAX_PART_HEADER_BYTES) + 4
_HEADER_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# A line that begins with a blank continues the one before it.
_HEADER_END: Final = re.compile(rb"\r\n(?![ \t])")
# The values of Content-Transfer-Encoding that leave a file's bytes as they are.
_AS_THEY_ARE: Final = {"", "7bit", "8bit", "binary"}
# Blanks between a boundary and the end of its line; mail gateways add them.
_MAX_PADDING: Final = 256
# Lines that begin with the boundary but go on otherwise. RFC 2046 does not allow them; each takes a microsecond.
_MAX_NEAR_BOUNDARIES: Final = 64
_MOST_KEPT: Final = 1.125  # of a file's length; as much as a growing bytearray may allocate ahead
_SHOWN_CHARACTERS: Final = 40


@dataclass(frozen=True)
class UploadedFile:
    """One encoded file; `filename` is the client's, and empty if the client sent none."""

    filename: str
    data: Data


class Form:
    """Parses a multipart body as it arrives: keeps the files, counts and skips the other parts.

    A part is a file if it has a filename or is named `file`, unless it has neither a filename nor content: that is what
    browsers send for a file input without a file. Each search continues where the last one ended, so that the time
    taken is proportional to the body's size. The methods raise `MalformedUpload`, `MissingFile`, `TooManyFiles` and
    `UnsupportedBody`.
    """

    def __init__(self, content_type: str, max_files: int) -> None:
        boundary = boundary_of(content_type)
        if not boundary:
            raise MalformedUpload(
                "The Content-Type multipart/form-data lacks its boundary; let the client set the header."
            )
        if len(boundary) > _MAX_BOUNDARY_BYTES:
            raise MalformedUpload(
                f"The boundary of the multipart body has {len(boundary)} bytes; the limit is {_MAX_BOUNDARY_BYTES}"
                " bytes."
            )
        self._max_files = max_files
        self._files: list[UploadedFile] = []
        self._others: list[str] = []
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
            sent = f"; the parts sent are named {', '.join(self._others)}" if self._others else ""
            raise MissingFile(
                f"The form has no file: no part has a filename, and none named '{FILE_PART}' has content{sent}. With "
                "curl: -F 'file=@cat.jpg'."
            )
        return self._files

    def _read_data(self) -> bool:
        """Reads past the next delimiter; returns False if more data is needed."""
        at = self._buffer.find(self._delimiter, self._searched)
        if at < 0:
            self._searched = max(0, len(self._buffer) - len(self._delimiter) + 1)
            if not self._is_file:  # only its beginning is kept, and one byte to tell that there is more
                del self._buffer[HEAD_BYTES + 1 : self._searched]
                self._searched = min(self._searched, HEAD_BYTES + 1)
            return False
        after = at + len(self._delimiter)
        line = self._buffer[after : after + _MAX_PADDING + 2]
        padding = len(line) - len(line.lstrip(b" \t"))
        end = line[padding : padding + 2]
        if len(end) < 2 and padding <= _MAX_PADDING:
            self._searched = at
            return False
        if end == b"\r\n" or line.startswith(b"--"):
            if self._is_file:
                rest = self._buffer[after + padding :]
                self._end_file(at)
                self._buffer = rest
            else:
                self._end_other(at)
                del self._buffer[: after + padding]
            self._searched = 0
            self._complete = end != b"\r\n"
            self._begun, self._is_file = True, False
            self._delimiter, self._step = b"\r\n--" + self._boundary, Form._read_headers
            return True
        if not self._begun and end.startswith(b"\n"):
            raise _malformed("its lines end with LF, and the lines of a form end with CRLF")
        if padding:
            raise _malformed(f"a boundary is followed by more than {_MAX_PADDING} blanks or by something after blanks")
        self._near_boundaries += 1
        if self._near_boundaries > _MAX_NEAR_BOUNDARIES:
            raise _malformed(f"more than {_MAX_NEAR_BOUNDARIES} of its lines begin with the boundary and go on")
        self._searched = after
        return True

    def _read_headers(self) -> bool:
        """Reads a part's headers, each with the line end before it; returns False if more data is needed."""
        end = self._buffer.find(b"\r\n\r\n", self._searched)
        if end < 0 and len(self._buffer) <= _MAX_HEADER_BLOCK_BYTES:
            self._searched = max(0, len(self._buffer) - 3)
            return False
        self._begin_part(_part_headers(bytes(self._buffer[:end])))
        del self._buffer[: end + 4]
        self._searched = 0
        self._step = Form._read_data
        return True

    def _begin_part(self, headers: dict[str, str]) -> None:
        names = names_of(headers.get("content-disposition", ""))
        if not names:
            raise MalformedUpload("A part of the multipart body has no name in its Content-Disposition.")
        self._name, self._filename = names.get("name", ""), names.get("filename")
        media_type = headers.get("content-type", "").partition(";")[0].lower()
        if self._filename is None and media_type.startswith("multipart/"):
            raise UnsupportedBody(
                f"The part {_shown(self._name)} is of the type {_shown(media_type)}, which is not supported; send each "
                "file in a part of its own."
            )
        self._is_file = self._filename is not None or self._name == FILE_PART
        if self._is_file:
            _require_bytes(self._name, headers)
            self._check_count(len(self._files) + bool(self._filename))
        else:
            self._skip(self._name)

    def _end_other(self, length: int) -> None:
        if self._begun and (found := describe_non_image(self._buffer[: min(length, HEAD_BYTES + 1)])):
            self._others[-1] += f" ({found.what})"

    def _end_file(self, length: int) -> None:
        """Keeps the buffer, cut to `length`, as the file's data, unless that would keep much memory beside it."""
        if not length and not self._filename:
            self._skip(self._name, " (left empty)")
            return
        data = self._buffer
        if len(data) > length * _MOST_KEPT:
            data = data[:length]
        else:
            del data[length:]  # which seldom gives memory back
        if self._filename is None and (found := describe_non_image(data) or describe_text(data)):
            raise MissingFile(f"The part '{FILE_PART}' is {found.what}, not a file; {found.advice}.")
        self._files.append(UploadedFile(self._filename or "", data))
        self._check_count(len(self._files))

    def _skip(self, name: str, remark: str = "") -> None:
        """Counts a part that is not a file, to be named if the form has no file."""
        self._others.append(_shown(name) + remark)
        if len(self._others) > _MAX_OTHER_PARTS:
            raise TooManyFiles(f"The form has more than {_MAX_OTHER_PARTS} parts that are not files.")

    def _check_count(self, files: int) -> None:
        if files > self._max_files:
            raise TooManyFiles(f"The request has more files than the limit of {self._max_files}.")


def _part_headers(block: bytes) -> dict[str, str]:
    """Returns the headers of a part, unfolded and decoded as Latin-1. block: each line with the line end before it."""
    first, *lines = _HEADER_END.split(block, _MAX_PART_HEADERS + 1)
    if first:
        raise _malformed("the headers of a part begin with a blank, which continues a line, but there is none before")
    if len(lines) > _MAX_PART_HEADERS:
        raise MalformedUpload(f"A part has more headers than the limit of {_MAX_PART_HEADERS}.")
    headers = {}
    for line in lines:
        if len(line) > _MAX_PART_HEADER_BYTES:
            raise MalformedUpload(f"A header of a part is longer than the limit of {_MAX_PART_HEADER_BYTES} bytes.")
        name, colon, value = line.replace(b"\r\n", b"").partition(b":")
        if not colon or not _HEADER_NAME.fullmatch(name) or b"\r" in value or b"\n" in value:
            shown = _shown(line.decode("latin-1"))
            raise _malformed(f"{shown} in a part is not a header, which is written 'Name: value' and ends with CRLF")
        headers[name.lower().decode()] = value.decode("latin-1").strip(" \t")
    return headers


def _require_bytes(name: str, headers: dict[str, str]) -> None:
    """Refuses a file that is encoded, which RFC 7578 does not allow in a form."""
    for header, accepted in (("Content-Transfer-Encoding", _AS_THEY_ARE), ("Content-Encoding", {"", "identity"})):
        if (value := headers.get(header.lower(), "")).lower() not in accepted:
            raise encoded(f"part {_shown(name)}", header, value)


def encoded(what: str, header: str, value: str) -> UnsupportedBody:
    """Returns the error of a body or a part that such a header says is encoded."""
    return UnsupportedBody(
        f"The {what} has {header}: {value[:_SHOWN_CHARACTERS]}, which is not supported; send the bytes as they are, "
        "neither compressed nor encoded, and without that header."
    )


def _malformed(why: str) -> MalformedUpload:
    return MalformedUpload(f"The multipart body is malformed: {why}.")


def _shown(text: str) -> str:
    return repr(text[:_SHOWN_CHARACTERS])
