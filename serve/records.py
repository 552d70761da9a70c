"""Records → lines of JSON, CSV or a table, and how far a file of them has come.

Errors that leave here: `OutputError`, for an output file that cannot be gone on with.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from serve.errors import OutputError
from serve.folder import Record, is_problem

Writer = Callable[[Record], str]

FORMATS: Final = ("jsonl", "csv", "table")
_SHOWN_CLASSES: Final = 3


def writer(name: str, top_k: int) -> tuple[str, Writer]:
    """What a file of this format begins with, and the lines of a record."""
    if name == "csv":
        header = ["file", "error"]
        for rank in range(1, top_k + 1):
            header += [f"{column}_{rank}" for column in ("imagenet_id", "label", "probability")]
        return _csv_line(header), lambda record: _csv_line(_csv_row(record, top_k))
    return "", _json_line if name == "jsonl" else _table_line


def finished(path: Path, name: str) -> tuple[int, str | None, int]:
    """How many records of a file are whole, the path in the last one, and the byte at which the next one begins.

    What an interruption left of a record is not counted. Raises `OutputError` where it is no file of this format.
    """
    count, last, end = 0, b"", 0
    try:
        with path.open("rb") as file:
            for number, record in enumerate(_whole_records(file, quoted=name == "csv")):
                end += len(record)
                if number or name != "csv":
                    count, last = count + 1, record
    except FileNotFoundError:
        return 0, None, 0
    except OSError as error:
        raise OutputError(f"output file {path}: {(error.strerror or 'unreadable').lower()}") from error
    if not count:
        return 0, None, end
    try:
        text = last.decode("utf-8", "surrogateescape")
        return count, str(next(csv.reader([text]))[0] if name == "csv" else json.loads(text)["file"]), end
    except (ValueError, KeyError, TypeError, StopIteration, IndexError, csv.Error) as error:
        raise OutputError(f"output file {path}: its last record is not one of {name}") from error


def _whole_records(file: BinaryIO, quoted: bool) -> Iterator[bytes]:
    """Each record's bytes; with quotes, line breaks within them are part of it."""
    record = b""
    for line in file:
        record += line
        if line.endswith(b"\n") and not (quoted and record.count(b'"') % 2):
            yield record
            record = b""


def _json_line(record: Record) -> str:
    return json.dumps(record) + "\n"


def _csv_line(row: list[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(row)
    return buffer.getvalue()


def _csv_row(record: Record, top_k: int) -> list[str]:
    if is_problem(record):
        return [record["file"], record["detail"], *[""] * (3 * top_k)]
    row = [record["file"], ""]
    for entry in record["top_k"]:
        row += [entry["imagenet_id"], entry["label"], str(entry["probability"])]
    return row


def _table_line(record: Record) -> str:
    """For people: nothing in a path can move the cursor or begin a line."""
    path = "".join(each if each.isprintable() else repr(each)[1:-1] for each in record["file"])
    if is_problem(record):
        return f"{path:<40}  {record['detail']}\n"
    shown = [f"{entry['probability']:7.1%} {entry['label']}" for entry in record["top_k"][:_SHOWN_CLASSES]]
    return f"{path:<40}  {'  '.join(shown)}\n"
