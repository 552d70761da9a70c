"""The file that records go to: opened as it is, and held by one run at a time.

Raises: `OutputError`.
"""

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
def output_file(path: Path, resume: bool) -> Iterator[TextIO]:
    """A regular file that is new or empty or, to resume, as it is; or a device, a pipe or a terminal.

    Until the end of the `with` block no other run gets it, by whatever name. An `OSError` from within the block comes
    out as an `OutputError`, too.
    """
    try:
        # Not cut: until it is locked it may be another run's.
        descriptor = os.open(path, (os.O_RDWR if resume else os.O_WRONLY) | os.O_CREAT, 0o666)
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if resume and not regular:
            os.close(descriptor)
            raise OutputError(f"output file {path}: not a file that can be gone on with")
        with os.fdopen(
            descriptor, "r+" if resume else "w", encoding="utf-8", errors="surrogateescape", newline=""
        ) as file:
            if regular:
                _lock(descriptor, path)
            if regular and not resume and os.fstat(descriptor).st_size:
                raise OutputError(f"output file {path} is not empty; --resume goes on with it, or name another")
            yield file
    except OSError as error:
        raise OutputError(f"output {path}: {(error.strerror or 'cannot be written').lower()}") from error


def _lock(descriptor: int, path: Path) -> None:
    """Take the file for this process until it closes it or ends, however it ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"output file {path}: another run writes to it{_holder(descriptor)}; wait for its end, or name another "
            "--output"
        ) from error
    except OSError as error:  # a file system that has no locks; refusing it would keep everybody out
        why = (error.strerror or "unknown").lower()
        print(
            one_line(f"serve: output file {path} cannot be locked ({why}); see that no other run writes to it"),
            file=sys.stderr,
        )


def _holder(descriptor: int) -> str:
    """Who has locked a file, where the system says; it does not of processes in other containers."""
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
