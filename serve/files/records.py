"""Records → lines of JSON, CSV or a table, and how far a file of them has come.

Errors that leave here: `OutputError`, for an output file that cannot be gone on with.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from serve.errors import OutputError
from serve.files.runner import Record, is_problem
from serve.printable import printable

Writer = Callable[[Record], str]

FORMATS: Final = ("jsonl", "csv", "table")
_SHOWN_CLASSES: Final = 3
_JSON_BEGINS: Final = b'{"file": "'
_MAX_BYTES: Final = 16 * 2**20  # of a record; one with the longest name and 20,000 classes has 4 MB


def writer(name: str, top_k: int) -> tuple[str, Writer]:
    """What a file of this format begins with, and the lines of a record."""
    if name == "csv":
        header = ["file", "error"]
        for rank in range(1, top_k + 1):
            header += [f"{column}_{rank}" for column in ("imagenet_id", "label", "probability")]
        return _csv_line(header), lambda record: _csv_line(_csv_row(record, top_k))
    return "", _json_line if name == "jsonl" else _table_line


@dataclass(frozen=True)
class Finished:
    """What a file holds already: whole records, those of them with problems, the path in the last one, and the byte at
    which the next one begins."""

    count: int = 0
    problems: int = 0
    last: str | None = None
    end: int = 0


def finished(file: BinaryIO, path: Path, name: str, header: str, top_k: int, model: str) -> Finished:
    """How far a file of this format has come; what an interruption left of a record is not counted.

    Raises `OutputError` where anything in it is not what a run with this header, `top_k` and model would have written,
    and `OSError`.
    """
    begins = header.encode() or _JSON_BEGINS
    count, problems, last, end = 0, 0, None, 0
    found = file.read(len(begins))
    if not begins.startswith(found):
        why = "is of another --top-k" if found.startswith(b"file,error,") else f"does not begin as {name} does"
        raise OutputError(f"output file {path} {why}; name another --output")
    file.seek(0)
    for record in _whole_records(file, quoted=name == "csv"):
        where = f"output file {path}: record {count + 1}"
        if len(record) > _MAX_BYTES:
            raise OutputError(f"{where} has more than {_MAX_BYTES} bytes; name another --output")
        if end or not header:
            last, problem = _read_back(record, name, top_k, model, where)
            count, problems = count + 1, problems + problem
        end += len(record)
    return Finished(count, problems, last, end)


def _read_back(record: bytes, name: str, top_k: int, model: str, where: str) -> tuple[str, bool]:
    """The path in a record, and whether it is a problem."""
    try:
        text = record.decode("utf-8", "surrogateescape")
        if name == "csv":
            (row,) = csv.reader([text], strict=True)
            path, error, *classes = row
            if len(classes) != 3 * top_k:
                raise ValueError
            return path, bool(error)
        found = json.loads(text)
        path, problem = str(found["file"]), is_problem(found)
        count, its_model = (top_k, model) if problem else (len(found["top_k"]), found["model"])
    except (ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        raise OutputError(f"{where} is not one of {name}; name another --output") from error
    if count != top_k:
        raise OutputError(f"{where} has {count} classes, not the {top_k} of --top-k; name another --output")
    if its_model != model:
        raise OutputError(f"{where} is of the model {its_model}, not of {model}; name another --output")
    return path, problem


def _whole_records(file: BinaryIO, quoted: bool) -> Iterator[bytes]:
    """Each record's bytes, or the beginning of too many; with quotes, line breaks within them are part of it."""
    record, within = bytearray(), False
    while line := file.readline(_MAX_BYTES + 1 - len(record)):
        record += line
        within ^= quoted and line.count(b'"') % 2 == 1
        if len(record) > _MAX_BYTES or (line.endswith(b"\n") and not within):
            yield bytes(record)
            record, within = bytearray(), False


def _json_line(record: Record) -> str:
    return json.dumps(record).replace("\x7f", "\\u007f") + "\n"  # the one control character that it leaves


def _csv_line(row: list[str]) -> str:
    buffer = io.StringIO()
    # By both, so that a name with either is quoted.
    csv.writer(buffer, lineterminator="\r\n").writerow(row)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _csv_row(record: Record, top_k: int) -> list[str]:
    if is_problem(record):
        return [record["file"], record["detail"], *[""] * (3 * top_k)]
    row = [record["file"], ""]
    for entry in record["top_k"]:
        row += [entry["imagenet_id"], entry["label"], str(entry["probability"])]
    return row


def _table_line(record: Record) -> str:
    """For people: nothing in a path can move the cursor or begin a line."""
    path = printable(record["file"])
    if is_problem(record):
        return f"{path:<40}  {printable(record['detail'])}\n"
    shown = [f"{entry['probability']:7.1%} {printable(entry['label'])}" for entry in record["top_k"][:_SHOWN_CLASSES]]
    return f"{path:<40}  {'  '.join(shown)}\n"
