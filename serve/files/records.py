"""Formats records as lines of JSON, CSV or a table, and reads back a file of them to continue it."""

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

_TABLE_CLASSES: Final = 3
_JSON_START: Final = b'{"file": "'
_MAX_BYTES: Final = 16 * 2**20  # of a record; the longest name and 20,000 classes take 4 MB


def record_format(name: str, top_k: int) -> tuple[str, Callable[[Record], str]]:
    """Returns the header of the format jsonl, csv or table, and the function that formats a record."""
    if name == "csv":
        header = ["file", "error"]
        for rank in range(1, top_k + 1):
            header += [f"{column}_{rank}" for column in ("imagenet_id", "label", "probability")]
        return _csv_line(header), lambda record: _csv_line(_csv_row(record, top_k))
    return "", _json_line if name == "jsonl" else _table_line


@dataclass(frozen=True)
class ExistingRecords:
    """The complete records in a file: their number, those with problems, the last one's path, and its end in bytes."""

    count: int = 0
    problems: int = 0
    last_file: str | None = None
    end: int = 0


def read_existing(file: BinaryIO, path: Path, name: str, top_k: int, model: str) -> ExistingRecords:
    """Reads the complete records of a file in this format; an incomplete last one is not counted.

    Raises:
        OutputError: something in it was not written by a run with this format, `top_k` and, for JSON, model.
        OSError: the file cannot be read.
    """
    header, _ = record_format(name, top_k)
    start = header.encode() or _JSON_START
    count, problems, last, end = 0, 0, None, 0
    found = file.read(len(start))
    if not start.startswith(found):
        why = "has another --top-k" if found.startswith(b"file,error,") else f"is not a {name} file of records"
        raise OutputError(f"output file {path} {why}; choose another --output")
    file.seek(0)
    for record in _whole_records(file, quoted=name == "csv"):
        where = f"output file {path}: record {count + 1}"
        if len(record) > _MAX_BYTES:
            raise OutputError(f"{where} has more than {_MAX_BYTES} bytes; choose another --output")
        if end or not header:
            last, problem = _read_back(record, name, top_k, model, where)
            count, problems = count + 1, problems + problem
        end += len(record)
    return ExistingRecords(count, problems, last, end)


def _read_back(record: bytes, name: str, top_k: int, model: str, where: str) -> tuple[str, bool]:
    """Returns the path in a record and whether it is a problem."""
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
        raise OutputError(f"{where} is not {name}; choose another --output") from error
    if count != top_k:
        raise OutputError(f"{where} has {count} classes, not the {top_k} of --top-k; choose another --output")
    if its_model != model:
        raise OutputError(f"{where} is from the model {its_model}, not {model}; choose another --output")
    return path, problem


def _whole_records(file: BinaryIO, quoted: bool) -> Iterator[bytes]:
    """Yields each record's bytes, cut if they are too many; if `quoted`, line breaks within quotes are part of it."""
    record, within = bytearray(), False
    while line := file.readline(_MAX_BYTES + 1 - len(record)):
        record += line
        within ^= quoted and line.count(b'"') % 2 == 1
        if len(record) > _MAX_BYTES or (line.endswith(b"\n") and not within):
            yield bytes(record)
            record, within = bytearray(), False


def _json_line(record: Record) -> str:
    return json.dumps(record).replace("\x7f", "\\u007f") + "\n"  # the only control character that json.dumps leaves


def _csv_line(row: list[str]) -> str:
    buffer = io.StringIO()
    # \r\n, so that a name with either character is quoted.
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
    """Formats a record for a terminal, with paths and messages escaped."""
    path = printable(record["file"])
    if is_problem(record):
        return f"{path:<40}  {printable(record['detail'])}\n"
    shown = [f"{entry['probability']:7.1%} {printable(entry['label'])}" for entry in record["top_k"][:_TABLE_CLASSES]]
    return f"{path:<40}  {'  '.join(shown)}\n"
