"""A standard error stream that never blocks: lines are in order, or dropped, counted and reported."""

import fcntl
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.config.settings import ROOT
from serve.observability.error_stream import ErrorStream

MOST = 1000 + 4096  # at most this many lines fit into the queue and the pipe of 4 KiB


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe of 4 KiB."""
    ours, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


@pytest.fixture
def full(pipe: tuple[int, int]) -> tuple[ErrorStream, int]:
    """A stream that is full and has dropped lines, and the read end of its pipe."""
    stream = ErrorStream(pipe[1])
    for number in range(MOST + 1):
        stream.write(f"{number}\n")
    assert stream.dropped > 0
    return stream, pipe[0]


class Reader:
    """Reads everything on a thread of its own."""

    def __init__(self, descriptor: int) -> None:
        self.text = ""
        self._descriptor = descriptor
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, pattern: str) -> str:
        give_up = time.monotonic() + 20
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < give_up, self.text[-200:]
            time.sleep(0.01)
        return found[0]

    def _read(self) -> None:
        while data := os.read(self._descriptor, 65536):
            self.text += data.decode()


def test_lines_arrive_in_order_and_drain_waits_for_them(pipe: tuple[int, int]) -> None:
    stream, reader = ErrorStream(pipe[1]), Reader(pipe[0])
    lines = [f"line {number} é \udc80\n" for number in range(900)]
    for line in lines:
        stream.write(line)
    stream.drain(20)
    reader.wait_for("line 899 .*\n")
    assert reader.text == "".join(lines).replace("\udc80", "\\udc80")
    assert stream.dropped == 0


def test_what_makes_a_line_runs_once_and_on_the_streams_thread(pipe: tuple[int, int]) -> None:
    stream, reader = ErrorStream(pipe[1]), Reader(pipe[0])
    threads: list[str] = []

    def make() -> str:
        threads.append(threading.current_thread().name)
        return "x" * 2000 + "\n"  # two fill a pipe's atomic write, so the third waits for the next batch

    stream.write("first\n")
    for _ in range(3):
        stream.write_later(make)
    stream.write("last\n")
    stream.drain(20)
    reader.wait_for("last\n")
    assert reader.text == "first\n" + ("x" * 2000 + "\n") * 3 + "last\n"
    assert threads == ["stderr"] * 3


def test_an_unread_pipe_blocks_neither_writers_nor_drain(full: tuple[ErrorStream, int]) -> None:
    stream, _ = full
    began = time.monotonic()
    for _ in range(1000):
        stream.write("more\n")
    stream.drain(0.1)
    assert time.monotonic() - began < 5  # not blocked


def test_dropped_lines_are_reported_once_there_is_room_again(full: tuple[ErrorStream, int]) -> None:
    stream, descriptor = full
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("serve")
    logger.addHandler(handler)
    try:
        reader = Reader(descriptor)
        said = reader.wait_for(r"\d+ lines of this log were dropped")
    finally:
        logger.removeHandler(handler)
    dropped = int(said.split()[0])
    assert dropped == stream.dropped == MOST + 1 - len(re.findall(r"^\d+$", reader.text, re.MULTILINE))


def test_lines_without_a_reader_are_counted_as_dropped_once() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    stream = ErrorStream(theirs)
    stream.write("nobody reads this\n")
    stream.write("nor this\n")
    stream.drain(20)
    assert stream.dropped == 2
    os.close(theirs)


def test_a_non_blocking_descriptor_loses_nothing(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    stream = ErrorStream(pipe[1])
    for number in range(900):
        stream.write(f"line {number}\n")
    time.sleep(0.1)  # it is full
    reader = Reader(pipe[0])
    reader.wait_for("line 899\n")
    assert reader.text.count("\n") == 900


def test_without_a_thread_drain_writes_the_lines(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    stream = ErrorStream(pipe[1])
    stream.write("what stopped it\n")
    stream.drain()
    assert os.read(pipe[0], 100) == b"what stopped it\n"
    for _ in range(1000):
        stream.write("0123456789\n")
    stream.drain(0.1)  # does not wait for a reader
    assert stream.dropped == 0


def test_signals_are_left_to_the_main_thread(pipe: tuple[int, int]) -> None:
    stream = ErrorStream(pipe[1])
    stream.write("a line\n")
    stream.drain(20)
    thread = next(each for each in reversed(threading.enumerate()) if each.name == "stderr")
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    blocked = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk"))
    assert blocked & 1 << signal.SIGTERM - 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


FORKED = """
import os, sys
from serve.observability.error_stream import install_error_stream
stream = install_error_stream()
print("before", file=sys.stderr)
pid = os.fork()
print("child" if pid == 0 else "parent", file=sys.stderr)
if pid == 0:
    stream.drain()
    os._exit(0)
os.waitpid(pid, 0)
raise ValueError("the end")
"""


def test_a_forked_process_writes_only_its_own_lines() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    assert sorted(lines[:3]) == ["before", "child", "parent"]
    assert lines[-1] == "ValueError: the end"
    assert done.returncode == 1
