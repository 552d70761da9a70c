"""Several server processes behind one port: started, replaced where one dies, ended together.

Each worker listens on a socket of its own, and the system spreads connections over them (SO_REUSEPORT). This process
holds the sockets and computes nothing: connections to a worker that died wait for the one that takes its place. What
starts a worker, and how it ends, is no different from a server that is alone.
"""

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

from serve.errors import StartError
from serve.leaving import SIGNALLED

# Runs a worker on its socket to the end, and tells when it is ready; the process's exit status.
Work = Callable[[int, socket.socket, Callable[[], None]], int]
# A worker that cannot start, or ends again and again, is not tried more often than this.
_RETRY_SECONDS: Final = 1.0
_YOUNG_SECONDS: Final = 5.0
# How much longer than their grace period workers may take before they are killed.
_KILL_AFTER_SECONDS: Final = 3.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
# prometheus_client's own name for the folder in which processes count together.
_COUNTING_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108  writable even where a container's root is not

log = logging.getLogger("serve")


def share(count: int, workers: int, number: int) -> int:
    """Of so many CPUs, those of one worker: as even as can be, and one at least."""
    return max(1, count // workers + (number < count % workers))


def count_alone() -> None:
    """Count in this process's memory, whatever folder the environment had for somebody else's."""
    for name in (_COUNTING_FOLDER, _COUNTING_FOLDER.lower()):  # the library goes by either
        os.environ.pop(name, None)


@contextmanager
def counting_together() -> Iterator[None]:
    """A folder in which all workers count, for the length of a `with` block; raises `StartError`."""
    try:
        folder = tempfile.mkdtemp("", "serve-metrics-", _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None)
    except OSError as error:
        raise StartError(
            f"several workers count in files, and there is no folder for them: {error.strerror}; "
            "mount a tmpfs at /tmp, or serve with --workers 1"
        ) from error
    count_alone()
    os.environ[_COUNTING_FOLDER] = folder
    try:
        yield
    finally:
        del os.environ[_COUNTING_FOLDER]
        shutil.rmtree(folder, ignore_errors=True)


class Workers:
    """Processes that run `work`, one for each listener, until SIGINT or SIGTERM."""

    def __init__(self, listeners: Sequence[socket.socket], work: Work, grace_seconds: float) -> None:
        self._listeners = listeners
        self._work = work
        self._grace = grace_seconds
        self._running: dict[int, int] = {}  # process id → number
        self._links: dict[int, socket.socket] = {}  # number → this end of what says that the other still lives
        self._began: dict[int, float] = {}  # number → when it was started last
        self._ending = False
        self._killed = False

    def run(self) -> int:
        """Start them, the first one alone, so that what stops a start is said once; the exit status."""
        for each in _SIGNALS:
            signal.signal(each, self._end)
        signal.signal(signal.SIGALRM, self._kill)
        self._start(0)
        if self._ending:  # a signal came before there was anybody to pass it on to
            return 0 if not self._running else self._wait()
        if not self._is_ready(0):
            code = os.waitstatus_to_exitcode(os.waitpid(next(iter(self._running)), 0)[1])
            return 0 if self._ending else code if code >= 0 else SIGNALLED - code
        for number in range(1, len(self._listeners)):
            self._start(number)
        return self._wait()

    def _wait(self) -> int:
        """Until all have ended; the exit status."""
        while self._running:
            self._replace(*os.waitpid(-1, 0))
        return 1 if self._killed else 0

    def _replace(self, pid: int, status: int) -> None:
        """One has ended."""
        number = self._running.pop(pid, None)
        if number is None:  # a stranger, whose own parent has ended: in a container this is process 1
            return
        self._links.pop(number).close()
        _forget(pid)
        if self._ending:
            return
        code = os.waitstatus_to_exitcode(status)
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        log.error("worker %d (process %d) ended %s; starting another", number + 1, pid, how)
        while number not in self._running.values() and not self._ending:
            if code > 0 or time.monotonic() - self._began[number] < _YOUNG_SECONDS:
                time.sleep(_RETRY_SECONDS)
            try:
                self._start(number)
            except OSError as error:  # no memory or no process left; the other workers go on
                log.error("worker %d cannot be started: %s", number + 1, error.strerror)
                code = 1

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        # A signal between the fork and the note of it would miss the new worker.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            if self._ending:
                ours.close()
                theirs.close()
                return
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                theirs.close()
                raise
            if pid == 0:
                ours.close()
                self._become(number, theirs)
            theirs.close()
            self._running[pid] = number
            self._links[number] = ours
            self._began[number] = time.monotonic()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _become(self, number: int, link: socket.socket) -> None:
        """In the new process: the work, and then the end."""
        status = 1
        try:
            os.setpgid(0, 0)  # Ctrl-C in a terminal is for the first process, which passes it on
            for other in self._links.values():
                other.close()
            for position, listener in enumerate(self._listeners):
                if position != number:
                    listener.close()
            for each in _SIGNALS:
                signal.signal(each, _leave)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            threading.Thread(target=_end_with, args=(link,), daemon=True).start()
            status = self._work(number, self._listeners[number], lambda: link.sendall(b"r"))
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        except BaseException:
            log.exception("worker %d failed", number + 1)
        finally:
            try:
                for each in _SIGNALS:
                    signal.signal(each, signal.SIG_IGN)
                sys.stderr.flush()
            finally:
                os._exit(status)  # never back into what this is a copy of

    def _is_ready(self, number: int) -> bool:
        """Wait until a worker says so; false where it ends before."""
        try:
            return bool(self._links[number].recv(1))
        except ConnectionError:
            return False

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Pass the signal on; a second Ctrl-C, too."""
        if not self._ending:
            self._ending = True
            for listener in self._listeners:  # the workers' own copies go on answering until they have drained
                listener.close()
            signal.setitimer(signal.ITIMER_REAL, self._grace + _KILL_AFTER_SECONDS)
        for pid in self._running:
            _send(pid, number)

    def _kill(self, number: int, frame: FrameType | None) -> None:
        for pid in self._running:
            self._killed = True
            log.error("worker process %d did not end in time and is killed", pid)
            _send(pid, signal.SIGKILL)


def _end_with(link: socket.socket) -> None:
    """End this process when the one that started it is gone, however that came."""
    with suppress(ConnectionError):  # what was written here, and not read there, makes the end a reset
        while link.recv(1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def _forget(pid: int) -> None:
    """A process that ended waits for nothing any more: take what it last said of that out of the metrics."""
    from serve.metrics import forget  # not before the folder is named, which its library looks for as it is loaded

    forget(pid)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
