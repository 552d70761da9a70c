"""The process that forks decoders: a fresh interpreter of one thread, with Pillow loaded, that reads no image.

A process with threads, such as the server, is never forked. The fork server ends when its socket closes, which it does
however the server ends; decoders end with the fork server.
"""

import fcntl
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple, NoReturn

from serve.imaging.messages import MEMORY, REPLIES, REQUESTS

# A message: what to do, the decoder's number, and its `Terms`.
_MESSAGE: Final = struct.Struct("=B7xQQQQ??6x")
_STATUS: Final = struct.Struct("=i")
_FORK, _END, _RETIRE = 1, 2, 3
# The status of a process that was killed, or that is not known, as after the fork server was replaced.
KILLED: Final = int(signal.SIGKILL)
_ANSWER_SECONDS: Final = 5.0
# Descriptors from this number on do not collide with a decoder's.
_ABOVE: Final = 16
# The shortest time between two starts of the process.
_RESTART_SECONDS: Final = 0.5


class Terms(NamedTuple):
    """What a decoder gets.

    Attributes:
        result_bytes: of the shared memory, for its result.
        small_memory: bytes of address space at first.
        all_memory: bytes of address space at most.
        seal: whether to seal it.
        threads: whether it may start threads.
    """

    result_bytes: int
    small_memory: int
    all_memory: int
    seal: bool
    threads: bool = False


_NO_TERMS: Final = Terms(0, 0, 0, False)


class ForkServer:
    """The server's side of the process; thread-safe.

    Args:
        takeover: for tests only, as in `decoder.run`.
    """

    def __init__(self, takeover: str = "") -> None:
        self._takeover = takeover
        self._lock = threading.Lock()
        self._number = 0  # of the last decoder
        self._closed = False
        self._start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def fork(self, descriptors: Sequence[int], terms: Terms) -> int:
        """Asks for a decoder, which reports itself on its pipe; does not wait for it.

        Args:
            descriptors: what becomes `REQUESTS`, `REPLIES` and `MEMORY` of it.
            terms: what it gets.

        Returns:
            The decoder's number, for `end` and `retire`.

        Raises:
            OSError: the process has ended and cannot be started again.
        """
        with self._lock:
            if self._closed:
                raise BrokenPipeError
            self._number += 1
            message = _MESSAGE.pack(_FORK, self._number, *terms)
            try:
                socket.send_fds(self._socket, [message], descriptors)
            except OSError:
                self._restart()
                socket.send_fds(self._socket, [message], descriptors)
            return self._number

    def end(self, number: int) -> int:
        """Kills a decoder, unless it has ended, and returns its status as `os.waitpid` does."""
        with self._lock:
            with suppress(OSError):
                self._socket.sendall(_MESSAGE.pack(_END, number, *_NO_TERMS))
                if len(answer := self._socket.recv(_STATUS.size)) == _STATUS.size:
                    return int(_STATUS.unpack(answer)[0])
            self._stop()  # the next fork starts it again
            return KILLED

    def retire(self, number: int) -> None:
        """Kills a decoder and does not wait for its end."""
        with self._lock, suppress(OSError):  # the next fork replaces the fork server
            self._socket.sendall(_MESSAGE.pack(_RETIRE, number, *_NO_TERMS))

    def close(self) -> None:
        """Ends the process and with it its decoders."""
        with self._lock:
            self._closed = True
            self._stop()

    def __del__(self) -> None:
        if hasattr(self, "_socket"):
            self._stop()

    def _start(self) -> None:
        self._started = time.monotonic()
        ours, theirs = socket.socketpair()
        with theirs:
            code = (
                f"import sys; sys.path[:] = {[os.path.abspath(path) for path in sys.path]!r}; "  # noqa: PTH100
                f"from serve.imaging.fork_server import run; run({theirs.fileno()}, {self._takeover!r})"
            )
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", code],
                    env={},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # or Ctrl-C in a terminal would end it before the requests in flight
                )
            except OSError:
                ours.close()
                raise
        ours.settimeout(_ANSWER_SECONDS)
        self._socket = ours

    def _restart(self) -> None:
        self._stop()
        time.sleep(max(0.0, self._started + _RESTART_SECONDS - time.monotonic()))
        self._start()

    def _stop(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()


def cause_of_death(status: int) -> str:
    """Returns which of `DEATHS` a process died of, from its status as `os.waitpid` returns it."""
    if not os.WIFSIGNALED(status):
        return "crash"
    match os.WTERMSIG(status):
        case signal.SIGSYS:
            return "forbidden_call"
        case signal.SIGKILL:
            return "killed"
        case _:
            return "crash"


def run(descriptor: int, takeover: str) -> NoReturn:
    """Forks decoders as asked on the socket, until it closes. Runs in a process of its own."""
    from serve.imaging.decoder import preload  # not at the top, because the server imports this module

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, no decoder can be waited for
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    preload(takeover)
    gc.collect()
    gc.freeze()  # or the first collection in each decoder would copy all pages
    with suppress(ConnectionError):  # the server has ended
        _obey(socket.socket(fileno=descriptor), takeover)
    os._exit(0)


def _obey(control: socket.socket, takeover: str) -> None:
    """Forks and ends decoders as messages ask, until the socket closes."""
    children: dict[int, int] = {}  # number → process id
    while True:
        message, descriptors, *_ = socket.recv_fds(control, _MESSAGE.size, 3)
        if len(message) < _MESSAGE.size:
            return
        action, number, *terms = _MESSAGE.unpack(message)
        if action == _FORK:
            with suppress(OSError):  # no process is left; the server sees the pipe close
                children[number] = _fork(descriptors, Terms(*terms), takeover)
            for each in descriptors:
                os.close(each)
            continue
        pid = children.pop(number, 0)
        if pid:
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1] if pid else KILLED
        if action == _END:
            control.sendall(_STATUS.pack(status))


def _fork(descriptors: Sequence[int], terms: Terms, takeover: str) -> int:
    """Forks a decoder and returns its process id."""
    from serve.imaging.decoder import run as run_decoder

    parent = os.getpid()
    if child := os.fork():
        return child
    try:
        _give_numbers(descriptors)
        run_decoder(parent, terms, takeover)
    finally:
        os._exit(1)


def _give_numbers(descriptors: Sequence[int]) -> None:
    """Gives the descriptors the numbers that `messages.py` names."""
    above = [fcntl.fcntl(each, fcntl.F_DUPFD, _ABOVE) for each in descriptors]
    for each, number in zip(above, (REQUESTS, REPLIES, MEMORY), strict=True):
        os.dup2(each, number)
