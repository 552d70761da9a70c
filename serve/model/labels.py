"""Parses the labels of a model's classes: JSON, CSV, or one label a line. Standard library only."""

import csv
import io
import json
import reprlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

encoded: Final = json.JSONEncoder(ensure_ascii=False).encode  # a string, as JSON

# Control characters, surrogates and line breaks: no name has them, and they could steer a terminal or a page.
_FORBIDDEN_CATEGORIES: Final = {"Cc", "Cs", "Zl", "Zp"}
_SHOWN: Final = 3  # classes named in an error
_CSV_COLUMNS: Final = {
    "index": ("index", "idx", "class_index", "class_idx", "number"),
    "id": ("id", "imagenet_id", "wordnet_id", "wnid", "synset"),
    "name": ("name", "label", "class", "class_name", "label_name"),
}
# The columns of a CSV file without a header, by their number.
_CSV_ORDER: Final = {1: ["name"], 2: ["index", "name"], 3: ["index", "id", "name"]}


@dataclass(frozen=True)
class Label:
    """One class: its WordNet id, such as `n02099601`, None if it has none, and its name, such as `golden_retriever`."""

    imagenet_id: str | None
    name: str

    @cached_property
    def json_members(self) -> str:
        """Its members in an answer, as JSON without the braces."""
        identifier = "" if self.imagenet_id is None else f'"imagenet_id":{encoded(self.imagenet_id)},'
        return f'{identifier}"label":{encoded(self.name)}'


def parse_labels(text: str, suffix: str, class_count: int) -> tuple[Label, ...]:
    """Parses a file of labels.

    Args:
        text: the file's content.
        suffix: of the file's name: `.json`, `.csv`, or another for one label a line, commas included. JSON is a list of
            labels, an object `{"0": label}`, or a `class_to_idx`, `{"name": 0}`; a label is a name or an id and a name.
            CSV has the columns name, or index and name, or index, id and name, or others in an order that its header
            tells.
        class_count: the number of the model's classes.

    Returns:
        The label of each logit, in the order of the logits.

    Raises:
        ValueError: the text has another format, or not one label for each class; the message says which.
    """
    match suffix.lower():
        case ".json":
            labels = _from_json(text)
        case ".csv":
            labels = _from_csv(text)
        case _:
            labels = [Label(None, line.strip()) for line in text.rstrip().split("\n")] if text.strip() else []
    return require_labels(labels, class_count)


def require_labels(labels: Sequence[Label], class_count: int) -> tuple[Label, ...]:
    """Checks that there is one label for each class, that no two are the same, and that all can be shown.

    Raises:
        ValueError: says which are missing, too many, the same, or not to be shown.
    """
    for position, label in enumerate(labels):
        for kind, text in (("label", label.name), ("id", label.imagenet_id)):
            if text is not None and not (text.strip() and _is_safe(text)):
                raise ValueError(
                    f"the {kind} of class {position} is {reprlib.repr(text)}, not a name without control characters"
                )
    if len(labels) < class_count:
        missing = _listed(map(str, range(len(labels), class_count)), class_count - len(labels))
        raise ValueError(f"{len(labels)} labels for a model of {class_count} classes: none for class {missing}")
    if len(labels) > class_count:
        surplus = _listed((reprlib.repr(label.name) for label in labels[class_count:]), len(labels) - class_count)
        raise ValueError(f"{len(labels)} labels for a model of {class_count} classes: {surplus} are too many")
    seen: dict[Label, int] = {}
    for position, label in enumerate(labels):
        if label in seen:  # with its id: two of ImageNet's classes are called crane
            raise ValueError(f"classes {seen[label]} and {position} have the same label, {reprlib.repr(label.name)}")
        seen[label] = position
    return tuple(labels)


def _is_safe(text: str) -> bool:
    return text.isprintable() or not any(unicodedata.category(each) in _FORBIDDEN_CATEGORIES for each in text)


def _listed(items: Iterable[str], count: int) -> str:
    shown = ", ".join(item for item, _ in zip(items, range(_SHOWN), strict=False))
    return shown if count <= _SHOWN else f"{shown} and {count - _SHOWN} more"


def _from_json(text: str) -> list[Label]:
    try:
        content = json.loads(text, object_pairs_hook=_without_repeated_keys)
    except _RepeatedKeyError as error:
        raise ValueError(f"two entries are called {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if isinstance(content, dict) and isinstance(content.get("class_to_idx"), dict):
        content = content["class_to_idx"]
    if isinstance(content, list):
        return [_label(position, entry) for position, entry in enumerate(content)]
    if not isinstance(content, dict):
        raise ValueError("no JSON object or list of labels")
    if content and all(type(value) is int for value in content.values()):  # class_to_idx
        return _in_order((index, Label(None, name)) for name, index in content.items())
    return _in_order((_index(key), _label(key, entry)) for key, entry in content.items())


class _RepeatedKeyError(Exception):
    """Two members of an object have the same key; the message is the key."""


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _RepeatedKeyError(reprlib.repr(key))
        made[key] = value
    return made


def _label(place: str | int, entry: Any) -> Label:
    match entry:
        case str(name) | [str(name)]:
            return Label(None, name)
        case [str(imagenet_id), str(name)]:
            return Label(imagenet_id or None, name)
    raise ValueError(f'entry {reprlib.repr(str(place))} is {reprlib.repr(entry)}, not a name or ["id", "name"]')


def _index(text: str) -> int:
    # No sign, space or underscore, which int() takes. More than nine digits number no class.
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise ValueError(f"{reprlib.repr(text)} is not the number of a class")


def _in_order(entries: Iterable[tuple[int, Label]]) -> list[Label]:
    """Returns the labels in the order of their numbers, which must be those from 0 on."""
    labels: dict[int, Label] = {}
    for index, label in entries:
        if index in labels:
            raise ValueError(
                f"class {index} has two labels, {reprlib.repr(labels[index].name)} and {reprlib.repr(label.name)}"
            )
        labels[index] = label
    missing = next((index for index in range(len(labels)) if index not in labels), None)
    if missing is not None:
        raise ValueError(f"class {missing} has no label, but class {max(labels, key=abs)} has one")
    return [labels[index] for index in range(len(labels))]


def _from_csv(text: str) -> list[Label]:
    delimiter = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets of half of Europe write semicolons
    try:
        every = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise ValueError(f"not CSV: {error}") from error
    rows = [row for row in every if any(cell.strip() for cell in row)]
    if not rows:
        return []
    columns = _header(rows[0])
    if columns:
        del rows[0]
    else:
        columns = _CSV_ORDER.get(len(rows[0]), [])
    if not columns:
        raise ValueError(f"{len(rows[0])} columns without a header; name them index, id and name")
    found = list(_cells(rows, columns))
    if "index" in columns:
        return _in_order((_index(cells["index"]), _label_of(cells)) for cells in found)
    return [_label_of(cells) for cells in found]


def _header(row: list[str]) -> list[str]:
    """Returns what each column is, "" for those that are not needed; nothing if the row is no header."""
    words = [cell.strip().lower() for cell in row]
    columns = [next((kind for kind, known in _CSV_COLUMNS.items() if word in known), "") for word in words]
    return columns if columns.count("name") == 1 else []


def _cells(rows: list[list[str]], columns: list[str]) -> Iterator[dict[str, str]]:
    for number, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise ValueError(f"row {number} has {len(row)} columns, not {len(columns)}")
        yield {column: cell.strip() for column, cell in zip(columns, row, strict=True)}


def _label_of(cells: dict[str, str]) -> Label:
    return Label(cells.get("id") or None, cells["name"])
