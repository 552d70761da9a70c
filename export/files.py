"""Files that are written all or none, and told by their content. Standard library only.

Errors that leave here: `ExportError`, naming the file.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from export.errors import ExportError


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_all(contents: Mapping[Path, bytes], gone: Iterable[Path] = ()) -> None:
    """Write these files and remove those that are to be `gone`; raises `ExportError` and has changed nothing.

    All are written beside their places first, then the earlier ones are moved aside, the last first, and at the end the
    new ones are moved in, the last last. A process that is killed meanwhile leaves files that are whole and of one set,
    the earlier or the new; some of that set may be missing, and lie beside as `.NAME.PID.earlier` or `.NAME.PID.new`.
    """
    new = {path: _beside(path, "new") for path in contents}
    earlier = {path: _beside(path, "earlier") for path in [*reversed(list(contents)), *gone]}
    moved: list[tuple[Path, Path]] = []
    path = Path()

    def move(source: Path, target: Path) -> None:
        moved.append((source, target))  # before it is, for Ctrl-C may come at any time
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


def _beside(path: Path, word: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{word}")


def _write(content: bytes, path: Path) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # some file systems tell only now that the disk is full


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
