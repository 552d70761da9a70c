"""Files in shared memory in which several worker processes keep their metrics, allocated before the first one starts.

prometheus_client maps a file per kind of metric into each process. If the file system is full, writing to a sparse file
kills the process with SIGBUS. So the files are fully allocated, and none is added later: they are named after the
worker's number instead of its process id, and a replacement worker continues with the same files. Each server keeps a
file in its folder locked, so that later servers can remove folders that were left behind.
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

# The environment variable in which prometheus_client looks for the folder.
FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108  writable even where a container's root is not
_PREFIX: Final = "serve-metrics-"
_LOCK: Final = "lock"
# Gauges describe the present, so they are cleared when a worker has ended.
_LIVE: Final = ("gauge_livesum", "gauge_livemax")
_KINDS: Final = ("counter", "histogram", *_LIVE)
# More than all series of one kind need, for every route with every status.
_FILE_BYTES: Final = 256 * 1024

log = logging.getLogger("serve")


def use_unshared_metrics() -> None:
    """Keeps metrics in this process's memory, even if the environment names a folder of another program."""
    for name in (FOLDER_VARIABLE, FOLDER_VARIABLE.lower()):  # the library reads both
        os.environ.pop(name, None)


@contextmanager
def shared_metrics(workers: int) -> Iterator[None]:
    """Creates the files of `workers` processes for a `with` block; without room, each worker has its own metrics."""
    use_unshared_metrics()
    allocated, reason = None, ""
    for parent in (_SHARED_MEMORY, *_temporary_folders()):
        try:
            _remove_abandoned(Path(parent))
            allocated = allocated or _allocate(parent, workers)
        except OSError as error:
            reason = f"{parent}: {(error.strerror or 'unusable').lower()}"
    if allocated is None:
        log.warning(
            "/metrics shows one worker only: there is no room for %d KB of shared files (%s); mount a tmpfs at /tmp, "
            "or use --workers 1",
            _FILE_BYTES * len(_KINDS) * workers // 1024,
            reason,
        )
        yield
        return
    folder, lock = allocated
    os.environ[FOLDER_VARIABLE] = str(folder)
    try:
        yield
    finally:
        use_unshared_metrics()
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def check_shared_files(number: int) -> bool:
    """Returns whether this worker's files exist; if they were removed (by systemd, at logout), stops sharing."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder and not all(_file(folder, kind, number).exists() for kind in _KINDS):
        log.warning("worker %d no longer shares its metrics: %s was removed", number + 1, folder)
        use_unshared_metrics()
    return FOLDER_VARIABLE in os.environ


def clear_gauges(number: int) -> None:
    """Clears the gauges of a worker that has ended; its counters stay."""
    if folder := os.environ.get(FOLDER_VARIABLE):
        for kind in _LIVE:
            with suppress(OSError), _file(folder, kind, number).open("r+b") as file:
                file.write(bytes(8))  # the length of the file's contents


def shared_process_ids(workers: int) -> memoryview:
    """Returns an integer for each worker, in memory that is shared with processes forked from this one."""
    return memoryview(mmap.mmap(-1, 4 * workers)).cast("i")


def _file(folder: str | Path, kind: str, number: int) -> Path:
    return Path(folder) / f"{kind}_{number}.db"  # as prometheus_client names it


def _temporary_folders() -> list[str]:
    try:
        return [tempfile.gettempdir()]
    except OSError:
        return []


def _allocate(parent: str, workers: int) -> tuple[Path, int]:
    """Creates a folder with all its files; returns it and the descriptor that keeps it locked.

    Raises:
        OSError: there is no room, or the folder cannot be created.
    """
    folder = Path(tempfile.mkdtemp("", _PREFIX, parent))
    try:
        for kind in _KINDS:
            for number in range(workers):
                with _file(folder, kind, number).open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)
        unlocked = folder / f"{_LOCK}-to-be"  # renamed once it is locked
        lock = os.open(unlocked, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        unlocked.rename(folder / _LOCK)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder, lock


def _remove_abandoned(parent: Path) -> None:
    """Removes the folders of servers that have ended, however they ended."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            lock = os.open(folder / _LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
