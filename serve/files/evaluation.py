"""Measures accuracy over files whose name or folder gives their class.

The class is a WordNet id: `n02124075_any.JPEG` anywhere, or any file below `n02124075/`.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from serve.files.runner import Record, is_problem

TOP_K: Final = 5
_WORDNET_ID: Final = re.compile(r"n\d{8}(?![0-9])")
_WORST_CLASSES: Final = 10


class Evaluation:
    """Counts correct predictions by class.

    Args:
        labels: class names by WordNet id.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = labels
        self._files: Counter[str] = Counter()
        self._first: Counter[str] = Counter()
        self._top: Counter[str] = Counter()
        self._unknown = 0
        self._problems = 0

    def add(self, record: Record) -> None:
        """Counts one record with at least `TOP_K` classes; a file with a problem counts as wrong."""
        truth = wordnet_id(record["file"])
        if truth is None:
            self._unknown += 1
            return
        self._files[truth] += 1
        if is_problem(record):
            self._problems += 1
            return
        found = [entry["imagenet_id"] for entry in record["top_k"][:TOP_K]]
        self._first[truth] += found[0] == truth
        self._top[truth] += truth in found

    def report(self) -> list[str]:
        """Returns the lines to print."""
        total = self._files.total()
        if not total:
            return [f"no accuracy: no file or folder has a WordNet id, n02124075, in its name ({self._unknown} files)"]
        lines = [
            f"top-1 {self._first.total() / total:.2%}, top-{TOP_K} {self._top.total() / total:.2%} of {total} files "
            f"in {len(self._files)} classes"
        ]
        if self._problems:
            lines.append(f"{self._problems} of them with problems, counted as wrong")
        if self._unknown:
            lines.append(f"{self._unknown} more without a WordNet id, left out")
        worst = sorted(self._files, key=lambda each: (self._first[each] / self._files[each], -self._files[each], each))
        wrong = [each for each in worst if self._first[each] < self._files[each]][:_WORST_CLASSES]
        if wrong:
            lines.append("worst classes:")
            lines += [
                f"  {each} {self._labels.get(each, ''):<24} {self._first[each]} of {self._files[each]} right, "
                f"{self._top[each]} in the top {TOP_K}"
                for each in wrong
            ]
        return lines


def wordnet_id(path: str) -> str | None:
    """Returns the WordNet id at the start of the file's name, or else of the nearest folder that has one."""
    whole = os.path.abspath(path)  # noqa: PTH100  resolve() follows links
    for part in reversed(Path(whole).parts):
        found = _WORDNET_ID.match(part)
        if found:
            return found[0]
    return None
