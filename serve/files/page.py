"""Writes one self-contained HTML page of classified files, to look at in a browser without a server.

Each record becomes a line of JSON in the page as soon as it is ready, so memory does not grow with the number of files
and an interrupted run can be continued. The script at the end of the page reads the lines.
"""

import base64
import hashlib
import html
import json
import os
import re
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TextIO
from urllib.parse import quote

from serve.errors import OutputError
from serve.files.runner import Record, is_problem
from serve.printable import printable

_FILE: Final = Path(__file__).with_name("page.html")
_RECORDS: Final = "{{records}}"
# Bytes of records; those of ten thousand images of noise take less. Beyond that, images get no thumbnail.
_MAX_BYTES: Final = 64 * 2**20
_MAX_LINE: Final = 2**20


class Page:
    """Writes the page. Leaving its `with` block completes the page, also after an error.

    Args:
        file: where to.
        path: its path, from which the links to the images start.
        model: name and variant of the model.
        min_probability: where the page's filter stands at first.
    """

    def __init__(self, file: TextIO, path: Path, model: str, min_probability: float) -> None:
        self._file = file
        self._path = path
        # As a browser follows the links: without resolving symbolic ones.
        self._folder = os.path.abspath(path.parent)  # noqa: PTH100
        self._head, self._tail = _render(model, min_probability)
        self._started = False
        self._bytes = self._beyond = self._failed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started:
            with suppress(OutputError) if error else nullcontext():  # the first error is the one to report
                self._write(self._tail)

    def start(self, count: int, last_file: str | None) -> None:
        """Writes the beginning, or keeps that of an earlier run with its first `count` records.

        Args:
            count: how many the earlier run wrote; 0 without one.
            last_file: the file of the last of them.

        Raises:
            OutputError: these records are not in the page.
            OSError: it cannot be read or written.
        """
        end = self._end_of_records(count, last_file) if self._file.readable() else 0
        self._started = True
        if end:
            self._file.seek(end)
            self._file.truncate()
            self._bytes = end - len(self._head.encode())
        else:
            self._file.write(self._head)

    def add(self, record: Record, thumbnail: bytes) -> None:
        """Writes a record.

        Args:
            record: of one file.
            thumbnail: a JPEG file; nothing if it could not be made, or the record has a problem.

        Raises:
            OutputError: the page cannot be written.
        """
        line = self._beginning(record["file"])
        if is_problem(record):
            line += f', "problem": {_json(record["detail"])}'
        else:
            line += f', "labels": {_json([[entry["label"], entry["probability"]] for entry in record["top_k"]])}'
            self._failed += not thumbnail
        if thumbnail and self._bytes < _MAX_BYTES:
            line += f', "thumbnail": "{base64.b64encode(thumbnail).decode()}"'
        elif thumbnail:
            self._beyond += 1
        self._write(line + "}\n")
        self._bytes += len(line) + 2  # JSON here is ASCII

    def report(self) -> list[str]:
        """Returns the lines to print at the end."""
        line = f"page: {self._path}"
        for count, why in ((self._beyond, "to keep the page small"), (self._failed, "because it could not be made")):
            line += f"; {count} image{'s have' if count > 1 else ' has'} no thumbnail, {why}" if count else ""
        return [line]

    def _write(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()  # so that the page never has fewer records than the output
        except OSError as error:
            raise OutputError(f"page {self._path}: {(error.strerror or 'cannot be written').lower()}") from error

    def _beginning(self, file: str) -> str:
        """Returns how the line of a file begins."""
        link = quote(os.fsencode(os.path.relpath(file, self._folder)))
        return f'{{"name": {_json(printable(file))}, "link": {_json(link)}'

    def _end_of_records(self, count: int, last_file: str | None) -> int:
        """Returns where the first `count` records end, in bytes; 0 if the file is empty."""
        head = self._head.encode()
        end = len(found := self._file.buffer.read(len(head)))
        if end and found != head:
            raise OutputError(f"page {self._path} is not one of this version and model; choose another --html")
        line = b""
        for _ in range(count):
            line = self._file.buffer.readline(_MAX_LINE)
            end += len(line)
            if not (line.startswith(b"{") and line.endswith(b"\n")):
                raise OutputError(
                    f"page {self._path} has fewer records than the output that --resume continues; leave out --html, "
                    "or start anew with another --output and --html"
                )
        if last_file is not None and not line.startswith(self._beginning(last_file).encode()):
            raise OutputError(f"page {self._path} has other files than the output; choose another --html")
        return end


def _json(value: object) -> str:
    """Returns JSON that cannot end the element of the page that it is in."""
    return json.dumps(value).replace("<", "\\u003c")


def _render(model: str, min_probability: float) -> tuple[str, str]:
    """Returns what comes before the records and after them; only the latter depends on `min_probability`.

    The page's policy allows its own style and script, and no request.
    """
    text = _FILE.read_text(encoding="utf-8")
    (style,), (script,) = (re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("style", "script"))
    values = {
        "model": html.escape(model),
        "least": f"{100 * min_probability:g}",
        "style": _hash(style),
        "script": _hash(script),
    }
    head, tail = (
        re.sub(r"\{\{(model|least|style|script)\}\}", lambda found: values[found[1]], part)
        for part in text.split(_RECORDS)  # before a value is put in, which may look like a place of the template
    )
    return head, tail


def _hash(text: str) -> str:
    """Returns a Content-Security-Policy source for an inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
