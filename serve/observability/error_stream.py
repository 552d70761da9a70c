"""A standard error stream that never blocks: lines go through a bounded queue to a thread that makes and writes them.

A pipe that nobody reads is full after 64 KiB, and then a write blocks, and requests and signals with it. Here lines
that don't fit into the queue are dropped and counted, and once there is room again the log says how many. The stream
replaces `sys.stderr`, so it also takes warnings, tracebacks and usage messages.
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
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_DESCRIPTOR: Final = 2
# Lines that may wait; except for tracebacks, each has at most about 3 KB.
_MAX_WAITING: Final = 1000
# Time to collect lines, so that a busy server's thread wakes up a hundred times a second rather than for each line.
_BATCH_SECONDS: Final = 0.01
# How long the process may wait at its end for lines to be written.
_DRAIN_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.002

log = logging.getLogger("serve")


class ErrorStream(io.TextIOBase):
    """A text stream over a descriptor. Safe on any thread, in signal handlers and after a fork."""

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Starts empty; also in a forked process, which has no thread, and whose parent writes the waiting lines."""
        self._waiting: deque[str | Callable[[], str]] = deque()
        # Released when a line waits. A lock and a deque, because a signal handler may interrupt any `write`.
        self._has_lines = threading.Lock()
        self._has_thread = False
        self._reported = 0
        self.dropped = 0

    def write(self, text: str) -> int:
        """Queues the text, or drops it if the queue is full."""
        self.write_later(text)
        return len(text)

    def write_later(self, text: str | Callable[[], str]) -> None:
        """Queues a text, or what makes it and raises nothing, or drops it if the queue is full."""
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.append(text)
            if self._has_lines.locked():
                with suppress(RuntimeError):  # a signal handler has just released it
                    self._has_lines.release()
        else:
            self.dropped += 1
        if not self._has_thread:
            self._start()

    def drain(self, seconds: float = _DRAIN_SECONDS) -> None:
        """Waits until the queue is written, for at most `seconds`."""
        deadline = time.monotonic() + seconds
        room = select.poll()
        room.register(self._descriptor, select.POLLOUT)
        while self._waiting and time.monotonic() < deadline:
            if self._has_thread:
                time.sleep(_POLL_SECONDS)
            elif room.poll(seconds * 1000):
                self._write_batch()

    def writable(self) -> bool:
        """Returns True."""
        return True

    def isatty(self) -> bool:
        """Returns whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        """Returns the descriptor, for code that writes to it directly."""
        return self._descriptor

    def _start(self) -> None:
        self._has_thread = True  # set first, in case a signal handler writes meanwhile
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # leaves them to the main thread
        try:
            threading.Thread(target=self._run, name="stderr", daemon=True).start()
        except RuntimeError:  # no thread is available; `drain` writes the queue at the end
            self._has_thread = False
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)

    def _run(self) -> None:
        while True:
            self._has_lines.acquire()
            time.sleep(_BATCH_SECONDS)
            written = True
            while self._waiting:
                written = self._write_batch()
            if written and self.dropped > self._reported:
                count, self._reported = self.dropped - self._reported, self.dropped
                log.warning("%d lines of this log were dropped, because standard error was not read in time", count)

    def _write_batch(self) -> bool:
        """Writes as many lines as a pipe takes atomically (PIPE_BUF); returns whether they were written."""
        lines = [self._line(0)]
        size = len(lines[0])
        while len(lines) < len(self._waiting):
            line = self._line(len(lines))
            size += len(line)
            if size > select.PIPE_BUF:
                break
            lines.append(line)
        try:
            self._write_all(b"".join(lines))
        except OSError:  # no reader, or a full disk
            self.dropped += len(lines)
            return False
        finally:
            for _ in lines:  # only now, so that `drain` waits for them
                self._waiting.popleft()
        return True

    def _line(self, position: int) -> bytes:
        """Returns a waiting text, encoded."""
        entry = self._waiting[position]
        text = entry if isinstance(entry, str) else entry()
        self._waiting[position] = text  # not made again if it has to wait for the next batch
        return text.encode(self._encoding, "backslashreplace")

    def _write_all(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process has made the shared pipe non-blocking
                select.select([], [self._descriptor], [])


def install_error_stream() -> ErrorStream:
    """Replaces `sys.stderr` with an `ErrorStream` for the rest of the process."""
    with suppress(OSError):  # if the pipe cannot be reopened, only writes outside Python can still block
        if stat.S_ISFIFO(os.fstat(_DESCRIPTOR).st_mode):
            own = os.open(f"/proc/self/fd/{_DESCRIPTOR}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.dup2(own, _DESCRIPTOR)  # O_NONBLOCK on the old description would affect all processes that share it
            os.close(own)
    stream = ErrorStream(_DESCRIPTOR, sys.stderr.encoding)
    sys.stderr = stream
    atexit.register(stream.drain)
    return stream
