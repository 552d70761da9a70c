"""Runs several worker processes behind one port: starts them, replaces those that die or hang, and ends them together.

Each worker listens on a socket of its own, and the kernel spreads connections over them (SO_REUSEPORT). The supervisor
keeps the sockets open, so connections to a worker that died wait for its replacement.
"""

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Final

from serve.errors import StartError
from serve.observability.shared_metrics import MetricsMemory
from serve.server.signals import EXIT_MARGIN_SECONDS, START_FAILED, STOP_SIGNALS, handle_stop_signals
from serve.server.worker import Heartbeat, become_worker

# Runs worker N on its socket until it ends, calling the heartbeat every second; returns the exit status.
RunWorker = Callable[[int, socket.socket, Heartbeat], int]
# How long to wait before another start after a worker that did not start, ended with an error, or ended early.
_RETRY_SECONDS: Final = 1.0
_EARLY_SECONDS: Final = 5.0
# How much longer than the grace period workers may take before they are killed.
_KILL_AFTER_SECONDS: Final = 3.0
# How long a worker may send no heartbeat before it is killed: once it is ready, and while it loads its model.
_SILENT_SECONDS: Final = 30
_LOADING_SECONDS: Final = 600

log = logging.getLogger("serve")


def cpu_share(count: int, workers: int, number: int) -> int:
    """Returns how many of `count` CPUs worker `number` gets: as even as possible, and at least one."""
    return max(1, count // workers + (number < count % workers))


@dataclass
class _Worker:
    """One worker process.

    Attributes:
        link: the socket on which it sends heartbeats.
        silent: seconds since its last heartbeat.
    """

    pid: int
    link: socket.socket
    began: float
    is_ready: bool = False
    silent: int = 0


class Supervisor:
    """Runs one worker per listener until one of `STOP_SIGNALS`.

    Args:
        listeners: a listening socket for each worker.
        work: runs a worker.
        grace_seconds: how long workers may take to answer the requests in flight.
        memory: of the workers' metrics.
    """

    def __init__(
        self, listeners: Sequence[socket.socket], work: RunWorker, grace_seconds: float, memory: MetricsMemory
    ) -> None:
        self._listeners = listeners
        self._work = work
        self._grace = grace_seconds
        self._running: dict[int, _Worker] = {}  # by number
        self._due = {0: 0.0}  # number → time to start it; the first starts alone, so that a failure is reported once
        self._memory = memory
        self._watched = time.monotonic()
        self._ready = False
        self._ending = False
        self._status = 0

    def run(self) -> int:
        """Runs the workers and returns the exit status.

        Raises:
            StartError: the first worker cannot be started.
        """
        handle_stop_signals(self._end)
        signal.signal(signal.SIGALRM, self._kill_late)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would discard workers' exit statuses
        while self._running or (self._due and not self._ending):
            self._start_due()
            self._read_heartbeats()
            self._reap()
            self._kill_silent()
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

    def _read_heartbeats(self) -> None:
        """Waits up to half a second for a heartbeat or the end of a worker."""
        poll = select.poll()
        numbers = {worker.link.fileno(): number for number, worker in self._running.items()}
        for descriptor in numbers:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(500):
            worker = self._running[numbers[descriptor]]
            with suppress(ConnectionError):
                if worker.link.recv(4096):
                    worker.silent = 0
                    worker.is_ready = True
                    if not self._ready:
                        self._ready = True
                        self._due = dict.fromkeys(range(1, len(self._listeners)), 0.0)
                    continue
            # Its socket has closed, which may happen before `_reap` can reap it.
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)

    def _reap(self) -> None:
        """Reaps ended processes, including orphans, because in a container this is process 1."""
        with suppress(ChildProcessError):  # no child is left
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for number, worker in tuple(self._running.items()):
                    if worker.pid == ended[0]:
                        self._replace(number, os.waitstatus_to_exitcode(ended[1]))

    def _replace(self, number: int, code: int) -> None:
        """Replaces a worker that has ended with exit status `code`, or was killed by signal `-code`."""
        worker = self._running.pop(number)
        worker.link.close()
        self._memory.clear(number)
        if self._ending:
            return
        how = f"by {_signal_name(-code)}" if code < 0 else f"with status {code}"
        if not self._ready:
            if code != START_FAILED:  # a worker with this status has reported the reason itself
                raise StartError(f"the first worker ended {how} before it was ready")
            self._status = code
            return
        log.error("worker %d (process %d) ended %s; starting another", number + 1, worker.pid, how)
        now = time.monotonic()
        self._due[number] = now + _RETRY_SECONDS if code > 0 or now - worker.began < _EARLY_SECONDS else now

    def _kill_silent(self) -> None:
        """Kills workers that hang. Time counts only while this process runs, because the machine may be asleep."""
        if self._ending or time.monotonic() - self._watched < 1:
            return
        self._watched = time.monotonic()
        for number, worker in self._running.items():
            worker.silent += 1
            if worker.silent > (_SILENT_SECONDS if worker.is_ready else _LOADING_SECONDS):
                _send_signal(worker.pid, signal.SIGKILL)
                log.error("worker %d (process %d) sent no heartbeat; killed it", number + 1, worker.pid)

    def _start(self, number: int) -> None:
        # A signal between the fork and the entry in `_running` would not reach the new worker.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            if self._ending:
                return
            own = self._listeners[number]
            run = partial(self._work, number, own)
            ours, theirs = socket.socketpair()
            links = [ours, *(worker.link for worker in self._running.values())]
            inherited = [*links, *(listener for listener in self._listeners if listener is not own)]
            with theirs:
                try:
                    pid = os.fork()
                except OSError:
                    ours.close()
                    raise
                if pid == 0:
                    become_worker(number, theirs, inherited, self._grace + EXIT_MARGIN_SECONDS, run)
            self._running[number] = _Worker(pid, ours, time.monotonic())
            self._memory.process_ids[number] = pid
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Begins the shutdown, and passes this and every later signal on to the workers."""
        if not self._ending:
            self._ending = True
            for listener in self._listeners:  # the workers' copies stay open until they have drained
                listener.close()
            signal.setitimer(signal.ITIMER_REAL, self._grace + _KILL_AFTER_SECONDS)
        for worker in self._running.values():
            _send_signal(worker.pid, number)

    def _kill_late(self, number: int, frame: FrameType | None) -> None:
        late = [worker.pid for worker in self._running.values()]
        for pid in late:
            _send_signal(pid, signal.SIGKILL)
        for pid in late:
            self._status = 1
            log.error("worker process %d did not end within the grace period; killed it", pid)


def _send_signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, number)


def _signal_name(number: int) -> str:
    """Returns a signal's name; some have none, such as real-time signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
