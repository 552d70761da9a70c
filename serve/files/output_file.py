"""Opens the file that records are written to, and locks it for one run at a time."""

import fcntl
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Final, TextIO

from serve.errors import OutputError
from serve.printable import one_line

# Kinds of paths that are left out: files in the folder of an option.
SORTED: Final = "files in the folder of --sort-into"
EXPLAINED: Final = "files in the folder of --explain"


@contextmanager
def output_file(path: Path | None, resume: bool, flag: str = "--output") -> Iterator[TextIO]:
    """Opens the output: a new or empty file, with `resume` one that has records; or a device, a pipe or a terminal.

    Without a path it is standard output. A regular file is locked until the end of the `with` block, by whichever link
    it was opened. A file that this made is removed if the block raises before anything is written to it. Messages name
    the flag.

    Raises:
        OutputError: the file cannot be used, or the block raised an `OSError`.
    """
    if path is None:
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
        yield sys.stdout
        return
    try:
        new = not os.path.lexists(path)
        # Not truncated: until it is locked it may belong to another run.
        descriptor = os.open(path, (os.O_RDWR if resume else os.O_WRONLY) | os.O_CREAT, 0o666)
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if resume and not regular:
            os.close(descriptor)
            raise OutputError(f"output file {path}: not a regular file, so it cannot be continued")
        with os.fdopen(
            descriptor, "r+" if resume else "w", encoding="utf-8", errors="surrogateescape", newline=""
        ) as file:
            if regular:
                _lock(descriptor, path, flag)
            if regular and not resume and os.fstat(descriptor).st_size:
                resumable = "continue it with --resume, or " if flag in ("--output", "--html") else ""
                raise OutputError(f"output file {path} is not empty; {resumable}choose another {flag}")
            try:
                yield file
            except BaseException:
                file.flush()
                if new and not os.fstat(descriptor).st_size:  # a run that was refused
                    path.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise OutputError(f"output {path}: {(error.strerror or 'cannot be written').lower()}") from error


def exclude_output(
    paths: Iterable[str], files: Sequence[Path | None], folders: Mapping[str, Path | None], left_out: Counter[str]
) -> Iterator[str]:
    """Yields the paths that are not the run's own output; iterate only once the files are open.

    Args:
        files: the files that are written, recognised even through a link; None for standard output.
        folders: the directories that are written to, each by its kind; None for one that is not.
        left_out: counts the paths in these directories, by kind.
    """
    own: set[tuple[int, int] | None] | None = None
    for path in paths:
        if own is None:
            own = {_file_id(sys.stdout.fileno() if file is None else file) for file in files} - {None}
        kind = next((kind for kind, folder in folders.items() if folder and lies_in(path, folder)), None)
        if kind:
            left_out[kind] += 1
        elif not own or _file_id(path) not in own:
            yield path


def lies_in(path: str, folder: Path) -> bool:
    """Returns whether the path, but for a link at its end, is below the directory."""
    outer = _real_directory(str(folder))
    return f"{_real_directory(os.path.dirname(path))}/".startswith(f"{outer.rstrip('/')}/")  # noqa: PTH120


# For a directory's files, which come one after another, and those to compare with.
_real_directory = lru_cache(maxsize=3)(os.path.realpath)


def _file_id(path: str | Path | int) -> tuple[int, int] | None:
    """Returns device and inode of a regular file, None for anything else."""
    try:
        status = os.stat(path)  # noqa: PTH116  also of a descriptor
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _lock(descriptor: int, path: Path, flag: str) -> None:
    """Locks the file until this process closes it or ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"output file {path}: another run is writing to it{_holder(descriptor)}; wait for its end, or choose "
            f"another {flag}"
        ) from error
    except OSError as error:  # a file system without locks; refusing it would exclude every run
        why = (error.strerror or "unknown").lower()
        print(
            one_line(f"serve: output file {path} cannot be locked ({why}); make sure that no other run writes to it"),
            file=sys.stderr,
        )


def _holder(descriptor: int) -> str:
    """Names the process that holds the lock, if the system shows it; it hides those of other containers."""
    status = os.fstat(descriptor)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            match line.split():
                case [_, "FLOCK", _, "WRITE", process, where, *_] if where == file:
                    return f", process {process}"
    except (OSError, ValueError):
        pass
    return ""
