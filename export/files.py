"""Where the project's files are, their sha256, and writing several files all or none. Standard library only."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from export.errors import ExportError
from serve.config.regular_file import open_regular

ROOT: Final = Path(__file__).resolve().parent.parent


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file's content, in hexadecimal; raises `OSError` if it is not a regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_all(contents: Mapping[Path, bytes], remove: Iterable[Path] = ()) -> None:
    """Writes all of `contents` and deletes all of `remove`, or changes nothing.

    The new files are written beside their places first. Then the old ones are moved aside in reverse order, and the new
    ones are moved in, the last one last. A process killed in between leaves only complete files of one set, the old or
    the new; the rest of that set may still lie beside them as `.NAME.PID.earlier` or `.NAME.PID.new`.

    Raises:
        ExportError: a file cannot be written; the message names it.
    """
    new = {path: _beside(path, "new") for path in contents}
    earlier = {path: _beside(path, "earlier") for path in [*reversed(list(contents)), *remove]}
    moved: list[tuple[Path, Path]] = []
    path = Path()

    def move(source: Path, target: Path) -> None:
        moved.append((source, target))  # before the move, because Ctrl-C may come at any time
        source.replace(target)

    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(content, new[path])
        for path in earlier:
            if path.is_dir() and not path.is_symlink():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if path.exists() or path.is_symlink():
                move(path, earlier[path])
        for path in contents:
            move(new[path], path)
    except BaseException as error:
        for source, target in reversed(moved):
            with contextlib.suppress(OSError):
                target.replace(source)
        _remove(new.values())
        if isinstance(error, OSError):
            raise ExportError(f"cannot write {path}: {error.strerror}") from error
        raise
    _remove(earlier.values())


def make_directory(path: Path) -> None:
    """Makes the directory that files are going to be written to.

    Raises:
        ExportError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot make the directory {path}: {error.strerror}") from error


def _beside(path: Path, word: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{word}")


def _write(content: bytes, path: Path) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # some file systems report a full disk only here


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
