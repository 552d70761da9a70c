"""Several server processes behind one port: started, replaced where one dies or hangs, ended together.

Each worker listens on a socket of its own, and the system spreads connections over them (SO_REUSEPORT). This process
holds the sockets and computes nothing: connections to a worker that died wait for the one that takes its place. What
starts a worker, and how it ends, is no different from a server that is alone.

Errors that leave here: `StartError`.
"""

import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Final

from serve.errors import StartError
from serve.observability.counting import can_count_together, counting_together, forget, process_ids
from serve.server.signals import (
    HANGING_SECONDS,
    START_FAILED,
    STOPPING,
    end_within,
    failed,
    leave,
    leave_on_signals,
    on_stop,
)

# Runs worker number N on its socket to the end, calling what it is given each second; the process's exit status.
Work = Callable[[int, socket.socket, Callable[[], None]], int]
# A worker that cannot start, or ends again and again, is not tried more often than this.
_RETRY_SECONDS: Final = 1.0
_YOUNG_SECONDS: Final = 5.0
# How much longer than their grace period workers may take before they are killed.
_KILL_AFTER_SECONDS: Final = 3.0
# How long a worker may say nothing: at work, where it speaks up each second, and while its model is loaded.
_SILENT_SECONDS: Final = 30
_LOADING_SECONDS: Final = 600

log = logging.getLogger("serve")


def share(count: int, workers: int, number: int) -> int:
    """Of so many CPUs, those of one worker: as even as can be, and one at least."""
    return max(1, count // workers + (number < count % workers))


@dataclass
class _Worker:
    """One process. link: this end of what tells that the other still lives. silent: for so many seconds by now."""

    pid: int
    link: socket.socket
    began: float
    is_ready: bool = False
    silent: int = 0


class Workers:
    """Processes that run `work`, one for each listener, until a signal of `STOPPING`.

    silent_seconds: after how many without a word from its event loop a worker is taken for one that hangs.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        work: Work,
        grace_seconds: float,
        silent_seconds: int = _SILENT_SECONDS,
    ) -> None:
        self._listeners = listeners
        self._work = work
        self._grace = grace_seconds
        self._most_silent = silent_seconds
        self._running: dict[int, _Worker] = {}  # by number
        self._due = {0: 0.0}  # number → when to start it; the first one alone, so that what stops a start is said once
        self._pids = process_ids(len(listeners))
        self._watched = time.monotonic()
        self._ready = False
        self._ending = False
        self._status = 0

    def run(self) -> int:
        """Start them and keep them running; the exit status. Raises `StartError`."""
        on_stop(self._end)
        signal.signal(signal.SIGALRM, self._kill)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or, ignored, nobody could wait for a worker
        with counting_together(len(self._listeners)):
            while self._running or (self._due and not self._ending):
                self._start_due()
                self._listen()
                self._reap()
                self._watch()
        return self._status

    def _start_due(self) -> None:
        for number, when in tuple(self._due.items()):
            if time.monotonic() >= when:
                try:
                    self._start(number)
                    del self._due[number]
                except OSError as error:  # no memory or no process left; the other workers go on
                    if not self._ready:
                        raise StartError(f"the first worker cannot be started: {error.strerror}") from error
                    log.error("worker %d cannot be started: %s", number + 1, error.strerror)
                    self._due[number] = time.monotonic() + _RETRY_SECONDS

    def _listen(self) -> None:
        """Wait for any worker's word or end, half a second at most."""
        speakers = select.poll()
        numbers = {worker.link.fileno(): number for number, worker in self._running.items()}
        for descriptor in numbers:
            speakers.register(descriptor, select.POLLIN)
        for descriptor, _ in speakers.poll(500):
            worker = self._running[numbers[descriptor]]
            with suppress(ConnectionError):
                if worker.link.recv(4096):
                    worker.silent = 0
                    worker.is_ready = True
                    if not self._ready:
                        self._ready = True
                        self._due = dict.fromkeys(range(1, len(self._listeners)), 0.0)
                    continue
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # of its end this may be the first sign

    def _reap(self) -> None:
        """Note which processes have ended; those of others, too, as in a container this is process 1."""
        with suppress(ChildProcessError):  # there is none at all
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for number, worker in tuple(self._running.items()):
                    if worker.pid == ended[0]:
                        self._replace(number, os.waitstatus_to_exitcode(ended[1]))

    def _replace(self, number: int, code: int) -> None:
        """A worker has ended, with this status, or by a signal where it is negative."""
        worker = self._running.pop(number)
        worker.link.close()
        self._pids[number] = 0
        forget(number)
        if self._ending:
            return
        how = f"by {_name(-code)}" if code < 0 else f"with status {code}"
        if not self._ready:
            if code != START_FAILED:  # of which it has told by itself
                raise StartError(f"the first worker ended {how} before it was ready")
            self._status = code
            return
        log.error("worker %d (process %d) ended %s; starting another", number + 1, worker.pid, how)
        now = time.monotonic()
        self._due[number] = now + _RETRY_SECONDS if code > 0 or now - worker.began < _YOUNG_SECONDS else now

    def _watch(self) -> None:
        """Kill those that hang. Seconds count in which this process was awake, as the machine may have slept."""
        if self._ending or time.monotonic() - self._watched < 1:
            return
        self._watched = time.monotonic()
        for number, worker in self._running.items():
            worker.silent += 1
            if worker.silent > (self._most_silent if worker.is_ready else _LOADING_SECONDS):
                _send(worker.pid, signal.SIGKILL)
                log.error("worker %d (process %d) hangs and is killed", number + 1, worker.pid)

    def _start(self, number: int) -> None:
        # A signal between the fork and the note of it would miss the new worker.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            if self._ending:
                return
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    pid = os.fork()
                except OSError:
                    ours.close()
                    raise
                if pid == 0:
                    ours.close()
                    self._become(number, theirs)
            self._running[number] = _Worker(pid, ours, time.monotonic())
            self._pids[number] = pid
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def _become(self, number: int, link: socket.socket) -> None:
        """In the new process: the work, and then the end."""
        status = 1
        try:
            os.setpgid(0, 0)  # Ctrl-C in a terminal is for the first process, which passes it on
            for other in self._running.values():
                other.link.close()
            for position, listener in enumerate(self._listeners):
                if position != number:
                    listener.close()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            leave_on_signals()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            threading.Thread(target=_end_with, args=(link, self._grace + HANGING_SECONDS), daemon=True).start()
            if can_count_together(number):
                from serve.observability.metrics import (
                    count_as,  # not before the folder is named, which its library looks for
                )

                count_as(number, self._pids)
            status = self._work(number, self._listeners[number], lambda: _speak(link))
        except Exception as error:
            status = failed(f"worker {number + 1} cannot be started: {error}")
        finally:
            leave(status)  # never back into what this is a copy of

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Pass the signal on; a second Ctrl-C, too."""
        if not self._ending:
            self._ending = True
            for listener in self._listeners:  # the workers' own copies go on answering until they have drained
                listener.close()
            signal.setitimer(signal.ITIMER_REAL, self._grace + _KILL_AFTER_SECONDS)
        for worker in self._running.values():
            _send(worker.pid, number)

    def _kill(self, number: int, frame: FrameType | None) -> None:
        late = [worker.pid for worker in self._running.values()]
        for pid in late:
            _send(pid, signal.SIGKILL)
        for pid in late:
            self._status = 1
            log.error("worker process %d did not end in time and is killed", pid)


def _speak(link: socket.socket) -> None:
    """Say that this worker's event loop turns; where nobody listens at the moment there is no need to."""
    with suppress(OSError):
        link.send(b".", socket.MSG_DONTWAIT)


def _end_with(link: socket.socket, seconds: float) -> None:
    """End this process when the one that started it is gone, however that came, and within so many seconds."""
    with suppress(ConnectionError):  # what was written here, and not read there, makes the end a reset
        while link.recv(1):
            pass
    end_within(seconds)
    os.kill(os.getpid(), signal.SIGTERM)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def _name(number: int) -> str:
    """A signal's name; some have none, such as those for real time."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
