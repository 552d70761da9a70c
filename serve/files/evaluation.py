"""How right predictions are, for files whose name or folder says which class they are of. No error leaves this module.

A class is known by its WordNet id: `n02124075_any.JPEG` anywhere, or anything below `n02124075/`.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from serve.files.runner import Record, is_problem

TOP: Final = 5
_WNID: Final = re.compile(r"n\d{8}(?![0-9])")
_WORST: Final = 10


class Evaluation:
    """Counts of what was right, by class. labels: by WordNet id."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = labels
        self._files: Counter[str] = Counter()
        self._first: Counter[str] = Counter()
        self._among: Counter[str] = Counter()
        self._unknown = 0
        self._problems = 0

    def add(self, record: Record) -> None:
        """Count one record with at least `TOP` classes. A file with a problem counts as not right."""
        truth = wnid_of(record["file"])
        if truth is None:
            self._unknown += 1
            return
        self._files[truth] += 1
        if is_problem(record):
            self._problems += 1
            return
        found = [entry["imagenet_id"] for entry in record["top_k"][:TOP]]
        self._first[truth] += found[0] == truth
        self._among[truth] += truth in found

    def report(self) -> list[str]:
        """Lines to print."""
        total = self._files.total()
        if not total:
            return [f"no file says its class: name folders or files by WordNet id, n02124075 ({self._unknown} files)"]
        lines = [
            f"top-1 {self._first.total() / total:.2%}, top-{TOP} {self._among.total() / total:.2%} of {total} files "
            f"in {len(self._files)} classes"
        ]
        if self._problems:
            lines.append(f"{self._problems} of them have problems and count as wrong")
        if self._unknown:
            lines.append(f"{self._unknown} more say no class and are left out")
        worst = sorted(self._files, key=lambda each: (self._first[each] / self._files[each], -self._files[each], each))
        wrong = [each for each in worst if self._first[each] < self._files[each]][:_WORST]
        if wrong:
            lines.append("worst classes:")
            lines += [
                f"  {each} {self._labels.get(each, ''):<24} {self._first[each]} of {self._files[each]} right, "
                f"{self._among[each]} among the {TOP}"
                for each in wrong
            ]
        return lines


def wnid_of(path: str) -> str | None:
    """The WordNet id that a file's name begins with, or else that of the nearest folder around it."""
    whole = os.path.abspath(path)  # noqa: PTH100  resolve() would follow links
    for part in reversed(Path(whole).parts):
        found = _WNID.match(part)
        if found:
            return found[0]
    return None
