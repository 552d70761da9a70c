"""Reads files named by an operator, without blocking on pipes and up to a size limit."""

import errno
import io
import os
import stat
from pathlib import Path


class NotRegular(OSError):
    """The path names a device, a pipe or a socket."""


def open_regular(path: str | Path) -> io.BufferedReader:
    """Opens a regular file, or a link to one, for reading.

    Raises:
        OSError: the file cannot be opened, or is not regular; `strerror` says why.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  Path would change a path that must stay as given
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            # Not opened, because that would do something to a device or to the writer of a pipe.
            raise NotRegular(errno.EINVAL, "not a regular file")
        # Non-blocking, because opening a pipe without a writer would never return.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, "not a valid file name") from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise NotRegular(errno.EINVAL, "not a regular file")


def read_text(path: str | Path, max_bytes: int) -> str:
    """Reads a small UTF-8 file, dropping the byte order mark that some editors write.

    Raises:
        OSError: the file cannot be read, has more than `max_bytes` or is not UTF-8; `strerror` says why.
    """
    with open_regular(path) as file:
        data = file.read(max_bytes + 1) or b""  # None from files of /proc that have no data yet
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, "not UTF-8") from error
