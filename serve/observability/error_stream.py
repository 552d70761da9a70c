"""Standard error that never blocks: what is written waits, in bounded number, for a thread that passes it on.

A pipe that nobody reads is full after 64 KiB, and a write to it waits for ever: requests and signals would wait with
it. Here what does not fit any more is dropped and counted, and once there is room again the log says how much it was.
It takes the place of `sys.stderr`, so that nothing in Python goes past it: log, warnings, tracebacks, usage messages.

No error leaves this module.
"""

import atexit
import io
import logging
import os
import select
import signal
import stat
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Final

_DESCRIPTOR: Final = 2
# Lines that may wait; of 2 KB at most but for tracebacks.
_MOST_WAITING: Final = 1000
# So a busy server's thread wakes up a hundred times a second, and not for each line.
_GATHERING_SECONDS: Final = 0.01
# How long the end of the process may wait for lines that are still to be written.
_DRAINING_SECONDS: Final = 1.0
_ASKING_SECONDS: Final = 0.002

log = logging.getLogger("serve")


class ErrorStream(io.TextIOBase):
    """A text stream over a descriptor. Safe on any thread, in a signal's handler and after a fork."""

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Begin anew; also in a forked process, which has no thread, and whose parent writes what waits."""
        self._waiting: deque[bytes] = deque()
        # Released where something waits. This and a deque, because a signal's handler may interrupt any `write`.
        self._something_waits = threading.Lock()
        self._has_thread = False
        self._said = 0
        self.dropped = 0

    def write(self, text: str) -> int:
        """Have it written soon, or never; does not wait."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(text.encode(self._encoding, "backslashreplace"))
            with suppress(RuntimeError):  # it is released already
                self._something_waits.release()
        else:
            self.dropped += 1
        if not self._has_thread:
            self._start()
        return len(text)

    def drain(self, seconds: float = _DRAINING_SECONDS) -> None:
        """Wait until all that was written is passed on, for so long at most."""
        deadline = time.monotonic() + seconds
        room = select.poll()
        room.register(self._descriptor, select.POLLOUT)
        while self._waiting and time.monotonic() < deadline:
            if self._has_thread:
                time.sleep(_ASKING_SECONDS)
            elif room.poll(seconds * 1000):
                self._pass_some_on()

    def writable(self) -> bool:
        """It is."""
        return True

    def isatty(self) -> bool:
        """Whether what is written goes to a terminal."""
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        """The descriptor, for those who write to it by themselves."""
        return self._descriptor

    def _start(self) -> None:
        self._has_thread = True  # before it is true, for a signal's handler that comes here meanwhile
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        try:
            threading.Thread(target=self._pass_on, name="stderr", daemon=True).start()
        except RuntimeError:  # the system has none left; at the end `drain` does without
            self._has_thread = False
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)

    def _pass_on(self) -> None:
        while True:
            self._something_waits.acquire()
            time.sleep(_GATHERING_SECONDS)
            written = True
            while self._waiting:
                written = self._pass_some_on()
            if written and self.dropped > self._said:
                count, self._said = self.dropped - self._said, self.dropped
                log.warning("%d lines of this log were dropped, because standard error was not read in time", count)

    def _pass_some_on(self) -> bool:
        """As many lines as a pipe takes in one piece, whoever else writes to it; whether they are written."""
        lines = [self._waiting[0]]
        size = len(lines[0])
        while len(lines) < len(self._waiting) and (size := size + len(self._waiting[len(lines)])) <= select.PIPE_BUF:
            lines.append(self._waiting[len(lines)])
        try:
            self._write(b"".join(lines))
        except OSError:  # no reader, no room on a disk
            self.dropped += len(lines)
            return False
        finally:
            for _ in lines:  # not before, so that `drain` knows
                self._waiting.popleft()
        return True

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # somebody has made it so for all who share it
                select.select([], [self._descriptor], [])


def never_block() -> ErrorStream:
    """Put an `ErrorStream` in the place of standard error for as long as this process lives."""
    with suppress(OSError):  # where a pipe may not be opened anew, only what is no Python can still wait for its reader
        if stat.S_ISFIFO(os.fstat(_DESCRIPTOR).st_mode):
            own = os.open(f"/proc/self/fd/{_DESCRIPTOR}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.dup2(own, _DESCRIPTOR)  # for this process alone, where O_NONBLOCK itself is for all who share a pipe
            os.close(own)
    stream = ErrorStream(_DESCRIPTOR, sys.stderr.encoding)
    sys.stderr = stream
    atexit.register(stream.drain)
    return stream
