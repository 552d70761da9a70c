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
_ID: Final = "imagenet_id"
_MODEL_COLUMN: Final = ",model\n"
_APOSTROPHE: Final = "'"
# What a formula begins with; full-width and small forms are among the characters that normalisation maps to these.
_FORMULA: Final = frozenset("=+-@\N{MINUS SIGN}")
# Cells with one of these are quoted: line breaks, and what else may separate cells.
_QUOTED: Final = "\r\n\t;"
_MAX_BYTES: Final = 16 * 2**20  # of a record; the longest name and 20,000 classes take 4 MB


@dataclass(frozen=True)
class RecordFormat:
    """How records are written.

    Attributes:
        name: `jsonl`, `csv` or `table`.
        top_k: how many classes a record has.
        model: the model's name.
        ids: whether classes have ids.
    """

    name: str
    top_k: int
    model: str
    ids: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of one class in CSV."""
        return (*([_ID] if self.ids else []), "label", "probability")

    @property
    def header(self) -> str:
        """The first line, if there is one."""
        if self.name != "csv":
            return ""
        columns = [f"{column}_{rank}" for rank in range(1, self.top_k + 1) for column in self.columns]
        return _csv_line(["file", "error", *columns]).removesuffix("\n") + _MODEL_COLUMN

    def line(self, record: Record) -> str:
        """Returns a record as a line."""
        if self.name == "csv":
            return _csv_line(self._cells(record))
        return _json_line(record) if self.name == "jsonl" else _table_line(record)

    def _cells(self, record: Record) -> list[str]:
        if is_problem(record):
            return [record["file"], record["detail"], *[""] * (len(self.columns) * self.top_k), self.model]
        cells = [str(entry.get(column, "")) for entry in record["top_k"] for column in self.columns]
        return [record["file"], "", *cells, self.model]


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
    file: BinaryIO, path: Path, form: RecordFormat, see: Callable[[Record], object] = lambda _: None
) -> ExistingRecords:
    """Reads the complete records of a file in this format; an incomplete last one is not counted.

    Args:
        form: how they were written.
        see: called with each record; in those from CSV, a problem has no more than its detail.

    Raises:
        OutputError: something in it was not written so.
        OSError: the file cannot be read.
    """
    header = form.header
    start = header.encode() or _JSON_START
    count, problems, last, end = 0, 0, None, 0
    found = file.read(len(start))
    if not start.startswith(found):
        raise OutputError(f"output file {path} {_other_start(form.name, header, found)}; choose another --output")
    file.seek(0)
    for line in _whole_records(file, quoted=form.name == "csv"):
        where = f"output file {path}: record {count + 1}"
        if len(line) > _MAX_BYTES:
            raise OutputError(f"{where} has more than {_MAX_BYTES} bytes; choose another --output")
        if end or not header:
            record = _read_back(line, form, where)
            see(record)
            last, count, problems = record["file"], count + 1, problems + is_problem(record)
        end += len(line)
    return ExistingRecords(count, problems, last, end)


def _other_start(name: str, header: str, found: bytes) -> str:
    """Says how a file begins that does not begin like one of this run."""
    if header and found.startswith(header.removesuffix(_MODEL_COLUMN).encode() + b"\n"):
        return "is from an earlier version, which did not write the model"
    if found.startswith(b"file,error,"):
        return "has the columns of other labels or of another --top-k"
    return f"is not a {name} file of records"


def _read_back(line: bytes, form: RecordFormat, where: str) -> Record:
    """Returns the record in a line."""
    try:
        text = line.decode("utf-8", "surrogateescape")
        record: Record = _from_csv(text, form) if form.name == "csv" else json.loads(text)
        record["file"] = str(record["file"])
        count, its_model = form.top_k, record.get("model", form.model)
        if not is_problem(record):
            count, its_model = len(record["top_k"]), record["model"]
            if not 0 <= (probability := float(record["probability"])) <= 1:  # nor NaN
                raise ValueError
            record["probability"] = probability
            " ".join((record.get(_ID, ""), record["label"]))  # raises for what is not text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise OutputError(f"{where} is not {form.name}; choose another --output") from error
    if count != form.top_k:
        raise OutputError(f"{where} has {count} classes, not the {form.top_k} of --top-k; choose another --output")
    if its_model != form.model:
        raise OutputError(f"{where} is from the model {its_model}, not {form.model}; choose another --output")
    return record


def _from_csv(text: str, form: RecordFormat) -> Record:
    """Returns the record in a row.

    Raises:
        ValueError: it is none.
        csv.Error: it is not CSV.
    """
    (row,) = csv.reader([text], strict=True)
    path, error, *cells, model = (cell.removeprefix(_APOSTROPHE) for cell in row)
    width = len(form.columns)
    if len(cells) != width * form.top_k:
        raise ValueError
    if error:
        return {"file": path, "status": None, "detail": error, "model": model}
    classes = (cells[start : start + width] for start in range(0, len(cells), width))
    entries = [{**dict(zip(form.columns, each, strict=True)), "probability": float(each[-1])} for each in classes]
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


def _table_line(record: Record) -> str:
    """Formats a record for a terminal, with paths and messages escaped."""
    path = printable(record["file"])
    if is_problem(record):
        return f"{path:<40}  {printable(record['detail'])}\n"
    shown = [f"{entry['probability']:7.1%} {printable(entry['label'])}" for entry in record["top_k"][:_TABLE_CLASSES]]
    return f"{path:<40}  {'  '.join(shown)}\n"
