"""Files that an operator names, read without waiting for ever and without an end to their size.

Raises: `OSError`, whose `strerror` says what is wrong, whatever it is.
"""

import errno
import io
import os
import stat
from pathlib import Path


class NotRegular(OSError):
    """A device, a pipe or a socket."""


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file, or a link to one, for reading."""
    try:
        # Not blocking, because opening a pipe that nobody writes to would never end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError as error:  # from a NUL
        raise OSError(errno.EINVAL, "no file can have this name") from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise NotRegular(errno.EINVAL, "not a regular file")


def read_text(path: str | Path, max_bytes: int) -> str:
    """The text of a small file in UTF-8, without the byte order mark that some editors put before it."""
    with open_regular(path) as file:
        data = file.read(max_bytes + 1) or b""  # None from those of /proc that have nothing yet
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"more than {max_bytes} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(errno.EILSEQ, "not UTF-8") from error
