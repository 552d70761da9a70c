"""Measures accuracy over files whose name or folder gives their class.

For labels with WordNet ids that is the id: `n02124075_any.JPEG` anywhere, or any file below `n02124075/`. For others it
is the label: any file below `cat/`, or else `cat_any.jpg`.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from serve.files.runner import Record, is_problem
from serve.files.sorting import folder_names
from serve.model.labels import Label

TOP_K: Final = 5
_WORDNET_ID: Final = re.compile(r"n\d{8}(?![0-9])")
_WORST_CLASSES: Final = 10


class Evaluation:
    """Counts correct predictions by class.

    Args:
        labels: of all classes.
    """

    def __init__(self, labels: Sequence[Label]) -> None:
        self._wordnet = all(_WORDNET_ID.fullmatch(label.imagenet_id or "") for label in labels)
        self._names = {label.imagenet_id: label.name for label in labels}
        self._classes = {} if self._wordnet else _labels_by_name(labels)
        self._shows_top = len(labels) > TOP_K
        self._files: Counter[str] = Counter()
        self._first: Counter[str] = Counter()
        self._top: Counter[str] = Counter()
        self._unknown = 0
        self._problems = 0

    def add(self, record: Record) -> None:
        """Counts one record with at least `TOP_K` classes, or all there are; a file with a problem counts as wrong."""
        truth = wordnet_id(record["file"]) if self._wordnet else label_in(record["file"], self._classes)
        if truth is None:
            self._unknown += 1
            return
        self._files[truth] += 1
        if is_problem(record):
            self._problems += 1
            return
        found = [entry["imagenet_id" if self._wordnet else "label"] for entry in record["top_k"][:TOP_K]]
        self._first[truth] += found[0] == truth
        self._top[truth] += truth in found

    def report(self) -> list[str]:
        """Returns the lines to print; the top 5 only for a model of more classes."""
        total = self._files.total()
        what = "WordNet id" if self._wordnet else "label"
        if not total:
            example = "n02124075" if self._wordnet else next(iter(self._classes))
            return [f"no accuracy: no file or folder has a {what}, {example}, in its name ({self._unknown} files)"]
        top = f", top-{TOP_K} {self._top.total() / total:.2%}" if self._shows_top else ""
        lines = [f"top-1 {self._first.total() / total:.2%}{top} of {total} files in {len(self._files)} classes"]
        if self._problems:
            lines.append(f"{self._problems} of them with problems, counted as wrong")
        if self._unknown:
            lines.append(f"{self._unknown} more without a {what}, left out")
        worst = sorted(self._files, key=lambda each: (self._first[each] / self._files[each], -self._files[each], each))
        wrong = [each for each in worst if self._first[each] < self._files[each]][:_WORST_CLASSES]
        return [*lines, "worst classes:", *map(self._counts, wrong)] if wrong else lines

    def _counts(self, each: str) -> str:
        shown = f"{each} {self._names.get(each, ''):<24}" if self._wordnet else f"{each:<34}"
        top = f", {self._top[each]} in the top {TOP_K}" if self._shows_top else ""
        return f"  {shown} {self._first[each]} of {self._files[each]} right{top}"


def wordnet_id(path: str) -> str | None:
    """Returns the WordNet id at the start of the file's name, or else of the nearest folder that has one."""
    whole = os.path.abspath(path)  # noqa: PTH100  resolve() follows links
    for part in reversed(Path(whole).parts):
        found = _WORDNET_ID.match(part)
        if found:
            return found[0]
    return None


def label_in(path: str, classes: dict[str, str]) -> str | None:
    """Returns the label of the nearest folder of a path that has one, or else that at the start of the file's name.

    Args:
        path: as given, because folders above it may happen to be called like a class.
        classes: label by the name of a folder.
    """
    *folders, name = Path(path).parts
    for folder in reversed(folders):
        if folder in classes:
            return classes[folder]
    ends = (end for end in range(len(name), 0, -1) if not name[end : end + 1].isalnum())
    return next((classes[name[:end]] for end in ends if name[:end] in classes), None)


def _labels_by_name(labels: Sequence[Label]) -> dict[str, str]:
    """Returns the label by what a folder of its files may be called: label, id, or what `--sort-into` calls it."""
    classes = {label.name: label.name for label in labels}
    classes |= {label.imagenet_id: label.name for label in labels if label.imagenet_id}
    return classes | {folder: label.name for label, folder in folder_names(labels).items()}
