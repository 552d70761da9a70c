"""Opens the file that records are written to, and locks it for one run at a time."""

import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from serve.errors import OutputError
from serve.printable import one_line


@contextmanager
def output_file(path: Path | None, resume: bool) -> Iterator[TextIO]:
    """Opens the output: a new or empty file, with `resume` one that has records; or a device, a pipe or a terminal.

    Without a path it is standard output. A regular file is locked until the end of the `with` block, by whichever link
    it was opened.

    Raises:
        OutputError: the file cannot be used, or the block raised an `OSError`.
    """
    if path is None:
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
        yield sys.stdout
        return
    try:
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
                _lock(descriptor, path)
            if regular and not resume and os.fstat(descriptor).st_size:
                raise OutputError(
                    f"output file {path} is not empty; continue it with --resume, or choose another --output"
                )
            yield file
    except OSError as error:
        raise OutputError(f"output {path}: {(error.strerror or 'cannot be written').lower()}") from error


def exclude_output(paths: Iterator[str], output: Path | None) -> Iterator[str]:
    """Yields the paths that are not the output file, even through a link; iterate only once the output is open."""
    own: tuple[int, int] | None = None
    for number, path in enumerate(paths):
        if not number:
            own = _file_id(sys.stdout.fileno() if output is None else output)
        if own is None or _file_id(path) != own:
            yield path


def _file_id(path: str | Path | int) -> tuple[int, int] | None:
    """Returns device and inode of a regular file, None for anything else."""
    try:
        status = os.stat(path)  # noqa: PTH116  also of a descriptor
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _lock(descriptor: int, path: Path) -> None:
    """Locks the file until this process closes it or ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"output file {path}: another run is writing to it{_holder(descriptor)}; wait for its end, or choose "
            "another --output"
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
