"""Sorts classified files into a directory, as links or copies in one subdirectory per label.

Nothing is overwritten, moved or deleted. Sorting the same files again changes nothing, so an interrupted run can be
continued.
"""

import errno
import filecmp
import hashlib
import itertools
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from serve.config.regular_file import open_regular
from serve.errors import OutputError
from serve.files.runner import Record, is_problem
from serve.model.labels import Label

# What some system does not allow in a file's name: separators, wildcards, and the names of devices on Windows.
# Control characters, those of the direction of text, which would show another name, and surrogates are not for names.
_FORBIDDEN: Final = re.compile(
    r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]'
)
_DEVICE: Final = re.compile(r"(con|prn|aux|nul|com[\d¹²³]|lpt[\d¹²³])(\.|$)", re.IGNORECASE)
# How file systems without links refuse one.
_NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
_MAX_BYTES: Final = 255  # of a file's name
_MAX_LABEL_BYTES: Final = 120  # of a label and of a WordNet id in a directory's name
_HASH_DIGITS: Final = (8, 16, 64)
_SHOWN: Final = 20


class Sorter:
    """Sorts files by the labels in their records.

    Args:
        folder: where to; it is made with the first file.
        labels: the model's classes.
        min_probability: files whose label is less probable are not sorted.
        copy: whether files are copied rather than linked.
        dry_run: whether files are only counted.

    Attributes:
        failed: how many files were gone, or could not be read again to be copied.
    """

    def __init__(
        self, folder: Path, labels: Sequence[Label], min_probability: float, *, copy: bool, dry_run: bool
    ) -> None:
        self._folder = folder
        self._names = folder_names(labels)
        self._min_probability = min_probability
        self._copy = copy
        self._dry_run = dry_run
        self._counts: Counter[str] = Counter()
        self._before = self._unsure = self.failed = 0

    def add(self, record: Record) -> None:
        """Sorts the file of a record, unless it has a problem.

        Raises:
            OutputError: the link or copy cannot be made.
        """
        if is_problem(record):
            return
        if record["probability"] < self._min_probability:
            self._unsure += 1
            return
        label = Label(record.get("imagenet_id") or None, record["label"])
        name = self._names.get(label) or safe_name(label.name)
        if not self._dry_run:
            try:
                made = self._sort(record["file"], self._folder / name)
            except OSError as error:
                raise OutputError(
                    f"{self._folder / name}: {record['file']} cannot be {'copied' if self._copy else 'linked'} "
                    f"({(error.strerror or 'unknown').lower()}){self._advice(error)}"
                ) from error
            if made is None:
                self.failed += 1
                return
            self._before += not made
        self._counts[name] += 1

    def report(self) -> list[str]:
        """Returns the lines to print at the end."""
        total, kinds = self._counts.total(), len(self._counts)
        would = "dry run: would have " if self._dry_run else ""
        line = (
            f"{would}{'copied' if self._copy else 'linked'} {total} file{'s' * (total != 1)} into {kinds} "
            f"folder{'s' * (kinds != 1)} of {self._folder}"
        )
        for count, words in (
            (self._before, "already there"),
            (self._unsure, f"less certain than {self._min_probability:g} and not sorted"),
            (self.failed, "no longer readable"),
        ):
            line += f", {count} {words}" if count else ""
        shown = self._counts.most_common(_SHOWN)
        lines = [line, *(f"  {name:<28} {count}" for name, count in shown)]
        if kinds > _SHOWN:
            lines.append(f"  and {total - sum(count for _, count in shown)} in {kinds - _SHOWN} more")
        if self._dry_run:
            lines.append("nothing was written; --yes does it (with --output and --resume without classifying again)")
        return lines

    def _advice(self, error: OSError) -> str:
        if isinstance(error, FileExistsError | NotADirectoryError):
            return "; remove what is there, or choose another --sort-into"
        return "; --copy copies it" if error.errno in _NO_LINKS and not self._copy else ""

    def _sort(self, path: str, folder: Path) -> bool | None:
        """Returns whether a link or copy was made, False if it was there; None if the file cannot be read any more."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in file_names(path):
            try:
                return _copy(path, folder / name) if self._copy else _link(path, folder / name)
            except FileExistsError:
                if _is_there(path, folder / name, self._copy):
                    return False
        raise FileExistsError(0, "other files have its names")


def folder_names(labels: Sequence[Label]) -> dict[Label, str]:
    """Returns the directory of each class.

    It is the class's name; if another class has the same (crane), with its WordNet id, or else a number.
    """
    names = {label: safe_name(label.name) for label in labels}
    users = Counter(name.casefold() for name in names.values())
    taken = set(users)
    for label, name in names.items():
        if users[name.casefold()] > 1:
            ids = [safe_name(label.imagenet_id)] if label.imagenet_id else []
            endings = itertools.chain(ids, itertools.count(1))
            full = (f"{name}_{ending}" for ending in endings)
            names[label] = next(each for each in full if each.casefold() not in taken)
            taken.add(names[label].casefold())
    return names


def safe_name(text: str) -> str:
    """Makes a label a file name that every system allows and none hides."""
    name = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", text))
    name = name.encode()[:_MAX_LABEL_BYTES].decode(errors="ignore").strip(" .")
    return f"_{name}" if not name or _DEVICE.match(name) else name


def file_names(path: str, added: str = "") -> Iterator[str]:
    """Yields a file's own name, then names with a hash of its path, which are the same in every run.

    Args:
        path: the file.
        added: a suffix that every name gets.
    """
    name = Path(path)
    stem, suffix = (name.name, added) if added else (name.stem, name.suffix)
    if len(os.fsencode(stem + suffix)) <= _MAX_BYTES:
        yield stem + suffix
    digest = hashlib.sha256(os.fsencode(_absolute(path))).hexdigest()
    for digits in _HASH_DIGITS:
        end = os.fsencode(f" ({digest[:digits]}){suffix}")
        yield os.fsdecode(os.fsencode(stem)[: max(0, _MAX_BYTES - len(end))] + end)


def _absolute(path: str) -> Path:
    """Returns the absolute path without links among its directories; the file itself may be one."""
    return Path(path).parent.resolve() / Path(path).name


def _link(path: str, target: Path) -> bool | None:
    if not os.path.exists(path):  # noqa: PTH110  Path may raise
        return None
    target.symlink_to(os.path.relpath(_absolute(path), target.parent.resolve()))
    return True


def _copy(path: str, target: Path) -> bool | None:
    try:
        source = open_regular(path)
    except OSError:
        return None
    with source, target.open("xb") as made:
        try:
            shutil.copyfileobj(source, made)
            made.flush()
            status = os.fstat(source.fileno())
            os.utime(made.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        except BaseException:  # a signal, too
            target.unlink(missing_ok=True)
            raise
    return True


def _is_there(path: str, target: Path, copied: bool) -> bool:
    """Returns whether the target is the file's link or copy."""
    if target.is_symlink() == copied:
        return False
    try:
        return filecmp.cmp(path, target, shallow=False) if copied else target.samefile(path)
    except OSError:
        return False
