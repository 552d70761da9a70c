"""Formats records as lines of JSON, CSV or a table, and reads back a file of them to continue it.

In CSV, a cell that a spreadsheet could take for a formula gets an apostrophe in front (OWASP, "CSV Injection"), as does
one that begins with an apostrophe. The text is therefore what follows an apostrophe at the beginning of a cell.
"""

import csv
import io
import json
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from serve.errors import OutputError
from serve.files.runner import Record, is_problem
from serve.printable import printable

_TABLE_CLASSES: Final = 3
_JSON_START: Final = b'{"file": "'
_CLASS_COLUMNS: Final = ("imagenet_id", "label", "probability")
_MODEL_COLUMN: Final = ",model\n"
_APOSTROPHE: Final = "'"
# What a formula begins with; full-width and small forms are among the characters that normalisation maps to these.
_FORMULA: Final = frozenset("=+-@\N{MINUS SIGN}")
# Cells with one of these are quoted: line breaks, and what else may separate cells.
_QUOTED: Final = "\r\n\t;"
_MAX_BYTES: Final = 16 * 2**20  # of a record; the longest name and 20,000 classes take 4 MB


def record_format(name: str, top_k: int, model: str) -> tuple[str, Callable[[Record], str]]:
    """Returns the header of the format jsonl, csv or table, and the function that formats a record."""
    if name == "csv":
        columns = [f"{column}_{rank}" for rank in range(1, top_k + 1) for column in _CLASS_COLUMNS]
        header = _csv_line(["file", "error", *columns]).removesuffix("\n") + _MODEL_COLUMN
        return header, lambda record: _csv_line(_csv_row(record, top_k, model))
    return "", _json_line if name == "jsonl" else _table_line


@dataclass(frozen=True)
class ExistingRecords:
    """The complete records in a file.

    Attributes:
        count: their number.
        problems: the number of those with problems.
        last_file: the path in the last one.
        end: where the last one ends, in bytes.
    """

    count: int = 0
    problems: int = 0
    last_file: str | None = None
    end: int = 0


def read_existing(
    file: BinaryIO, path: Path, name: str, top_k: int, model: str, see: Callable[[Record], object] = lambda _: None
) -> ExistingRecords:
    """Reads the complete records of a file in this format; an incomplete last one is not counted.

    Args:
        see: called with each record; in those from CSV, a problem has no more than its detail.

    Raises:
        OutputError: something in it was not written by a run with this format, `top_k` and model.
        OSError: the file cannot be read.
    """
    header, _ = record_format(name, top_k, model)
    start = header.encode() or _JSON_START
    count, problems, last, end = 0, 0, None, 0
    found = file.read(len(start))
    if not start.startswith(found):
        raise OutputError(f"output file {path} {_other_start(name, header, found)}; choose another --output")
    file.seek(0)
    for line in _whole_records(file, quoted=name == "csv"):
        where = f"output file {path}: record {count + 1}"
        if len(line) > _MAX_BYTES:
            raise OutputError(f"{where} has more than {_MAX_BYTES} bytes; choose another --output")
        if end or not header:
            record = _read_back(line, name, top_k, model, where)
            see(record)
            last, count, problems = record["file"], count + 1, problems + is_problem(record)
        end += len(line)
    return ExistingRecords(count, problems, last, end)


def _other_start(name: str, header: str, found: bytes) -> str:
    """Says how a file begins that does not begin like one of this run."""
    if header and found.startswith(header.removesuffix(_MODEL_COLUMN).encode() + b"\n"):
        return "is from an earlier version, which did not write the model"
    return "has another --top-k" if found.startswith(b"file,error,") else f"is not a {name} file of records"


def _read_back(line: bytes, name: str, top_k: int, model: str, where: str) -> Record:
    """Returns the record in a line."""
    try:
        text = line.decode("utf-8", "surrogateescape")
        record: Record = _from_csv(text, top_k) if name == "csv" else json.loads(text)
        record["file"] = str(record["file"])
        count, its_model = top_k, record.get("model", model)
        if not is_problem(record):
            count, its_model = len(record["top_k"]), record["model"]
            if not 0 <= (probability := float(record["probability"])) <= 1:  # nor NaN
                raise ValueError
            record["probability"] = probability
            " ".join((record["imagenet_id"], record["label"]))  # raises for what is not text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise OutputError(f"{where} is not {name}; choose another --output") from error
    if count != top_k:
        raise OutputError(f"{where} has {count} classes, not the {top_k} of --top-k; choose another --output")
    if its_model != model:
        raise OutputError(f"{where} is from the model {its_model}, not {model}; choose another --output")
    return record


def _from_csv(text: str, top_k: int) -> Record:
    """Returns the record in a row.

    Raises:
        ValueError: it is none.
        csv.Error: it is not CSV.
    """
    (row,) = csv.reader([text], strict=True)
    path, error, *cells, model = (cell.removeprefix(_APOSTROPHE) for cell in row)
    if len(cells) != len(_CLASS_COLUMNS) * top_k:
        raise ValueError
    if error:
        return {"file": path, "status": None, "detail": error, "model": model}
    classes = zip(cells[::3], cells[1::3], cells[2::3], strict=True)
    entries = [{"imagenet_id": number, "label": label, "probability": float(share)} for number, label, share in classes]
    return {"file": path, **entries[0], "top_k": entries, "model": model}


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
    csv.writer(buffer, lineterminator=_QUOTED).writerow(map(_no_formula, row))
    return buffer.getvalue().removesuffix(_QUOTED) + "\n"


def _no_formula(cell: str) -> str:
    """Puts an apostrophe in front of a formula, and of what could be taken for the result of that."""
    first = unicodedata.normalize("NFKC", cell.lstrip()[:1])
    return _APOSTROPHE + cell if first in _FORMULA or cell.startswith((_APOSTROPHE, "\t", "\r", "\n")) else cell


def _csv_row(record: Record, top_k: int, model: str) -> list[str]:
    if is_problem(record):
        return [record["file"], record["detail"], *[""] * (len(_CLASS_COLUMNS) * top_k), model]
    row = [record["file"], ""]
    for entry in record["top_k"]:
        row += [entry["imagenet_id"], entry["label"], str(entry["probability"])]
    return [*row, model]


def _table_line(record: Record) -> str:
    """Formats a record for a terminal, with paths and messages escaped."""
    path = printable(record["file"])
    if is_problem(record):
        return f"{path:<40}  {printable(record['detail'])}\n"
    shown = [f"{entry['probability']:7.1%} {printable(entry['label'])}" for entry in record["top_k"][:_TABLE_CLASSES]]
    return f"{path:<40}  {'  '.join(shown)}\n"
