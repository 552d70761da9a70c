"""Where several processes count together: files in memory, of a size that is reserved before the first of them starts.

prometheus_client maps a file of each kind into each process. Where a file system is full, writing to a file that has
holes ends a process there and then (SIGBUS). So these have none, and none is ever added: a worker's files go by its
number and not by its process, and one that takes the place of another goes on counting in the same. Each folder has a
file that its server holds locked, so that the next one to start can tell those that nobody cleared away.

No error leaves this module.
"""

import fcntl
import logging
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

# prometheus_client's own name for the folder in which processes count together.
FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108  writable even where a container's root is not
_PREFIX: Final = "serve-metrics-"
_LOCK: Final = "lock"
# What is so now, and not what was: nothing of it stays when a worker has ended.
_LIVE: Final = ("gauge_livesum", "gauge_livemax")
_KINDS: Final = ("counter", "histogram", *_LIVE)
# More than all series of one kind take, those of every route with every status.
_FILE_BYTES: Final = 256 * 1024

log = logging.getLogger("serve")


def count_alone() -> None:
    """Count in this process's memory, whatever folder the environment had for somebody else's."""
    for name in (FOLDER, FOLDER.lower()):  # the library goes by either
        os.environ.pop(name, None)


@contextmanager
def counting_together(workers: int) -> Iterator[None]:
    """A folder in which so many count, for the length of a `with` block; where no room is for one, each for itself."""
    count_alone()
    reserved, reason = None, ""
    for parent in (_SHARED_MEMORY, *_temporary()):
        try:
            _sweep(Path(parent))
            reserved = reserved or _reserve(parent, workers)
        except OSError as error:
            reason = f"{parent}: {(error.strerror or 'unusable').lower()}"
    if reserved is None:
        log.warning(
            "each worker counts for itself, and /metrics is of one of them, because there is no room for files of %d "
            "KB to count in (%s); mount a tmpfs at /tmp, or serve with --workers 1",
            _FILE_BYTES * len(_KINDS) * workers // 1024,
            reason or "no folder for temporary files",
        )
        yield
        return
    folder, lock = reserved
    os.environ[FOLDER] = str(folder)
    try:
        yield
    finally:
        count_alone()
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def can_count_together(number: int) -> bool:
    """Whether this worker's files are there; they may have been cleared away, as systemd does after a user's logout."""
    folder = os.environ.get(FOLDER)
    if folder and not all(_file(folder, kind, number).exists() for kind in _KINDS):
        log.warning("worker %d counts for itself, because %s is gone", number + 1, folder)
        count_alone()
    return FOLDER in os.environ


def forget(number: int) -> None:
    """A worker has ended, and waits for nothing any more; what it counted stays."""
    if folder := os.environ.get(FOLDER):
        for kind in _LIVE:
            with suppress(OSError), _file(folder, kind, number).open("r+b") as file:
                file.write(bytes(8))  # the length of what is in it


def process_ids(workers: int) -> memoryview:
    """One number for each worker, which processes that are forked from this one share."""
    return memoryview(mmap.mmap(-1, 4 * workers)).cast("i")


def _file(folder: str | Path, kind: str, number: int) -> Path:
    return Path(folder) / f"{kind}_{number}.db"  # as prometheus_client names it


def _temporary() -> list[str]:
    try:
        return [tempfile.gettempdir()]
    except OSError:
        return []


def _reserve(parent: str, workers: int) -> tuple[Path, int]:
    """A folder with all that is ever written to it, and the descriptor by which it is held; raises `OSError`."""
    folder = Path(tempfile.mkdtemp("", _PREFIX, parent))
    try:
        for kind in _KINDS:
            for number in range(workers):
                with _file(folder, kind, number).open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)
        unlocked = folder / f"{_LOCK}-to-be"  # so that nobody finds it before it is locked
        lock = os.open(unlocked, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        unlocked.rename(folder / _LOCK)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder, lock


def _sweep(parent: Path) -> None:
    """Remove the folders of servers that are no more, whatever ended them."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            lock = os.open(folder / _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
