"""Tests a server whose standard error is a pipe that nobody reads, which is full after a few requests."""

import fcntl
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.server_process import ROOT, START_SECONDS
from tests.tiny_model import PATH as TINY_MODEL

GRACE_SECONDS = 5
# The smallest pipe of Linux.
PIPE_BYTES = 4096
DROPPED = "serve_log_lines_dropped_total"
REPORTED = re.compile(r"(\d+) lines of this log were dropped")


class UnreadServer:
    """A server's process, its port, and the reading end of its log's pipe."""

    def __init__(self, *flags: str, code: str = "") -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log, theirs = os.pipe()
        fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        start = ["-c", code] if code else ["-m", "serve"]
        settings = ["--model", str(TINY_MODEL), "--port", str(self.port), "--grace-seconds", str(GRACE_SECONDS)]
        self.process = subprocess.Popen(
            [sys.executable, *start, *settings, "--log-format", "json", *flags],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=theirs,
        )
        os.close(theirs)

    def wait_until_ready(self) -> None:
        give_up = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < give_up:
            try:
                if self.get(1, "/readyz") == [200]:
                    return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("the server did not start")

    def get(self, requests: int, path: str = "/livez") -> list[int]:
        """The statuses of so many requests on one connection.

        Raises:
            OSError: An answer took more than five seconds.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        statuses = []
        for _ in range(requests):
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        connection.close()
        return statuses

    def dropped_lines(self) -> int:
        """The number of dropped lines according to `/metrics`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return int(sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(DROPPED)))

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal; return the exit status and the seconds until the exit.

        Raises:
            subprocess.TimeoutExpired: The process hangs.
        """
        began = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(GRACE_SECONDS + 15), time.monotonic() - began


@contextmanager
def unread_server(*flags: str, code: str = "") -> Iterator[UnreadServer]:
    """Run a server for the length of a `with` block, from its first answer on."""
    server = UnreadServer(*flags, code=code)
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            for pid in [*server.workers(), server.process.pid]:
                os.kill(pid, signal.SIGKILL)
            server.process.wait()
        os.close(server.log)


def unread_log(requests: int) -> list[str]:
    """Send so many requests to one process and to two, and end them; return a message for each failure."""
    wrong = []
    for workers in ("1", "2"):
        with unread_server("--workers", workers) as server:
            name = f"unread log, {workers} process{'es' * (workers != '1')}"
            try:
                answered = server.get(requests).count(200)
            except OSError as error:
                answered = 0
                wrong.append(f"{name}: no more answers ({error})")
            if 0 < answered < requests:
                wrong.append(f"{name}: {answered} of {requests} requests were answered with 200")
            try:
                status, seconds = server.end()
                if status or seconds > GRACE_SECONDS:
                    wrong.append(f"{name}: SIGTERM ended it with {status} after {seconds:.1f} s")
            except subprocess.TimeoutExpired:
                wrong.append(f"{name}: SIGTERM did not end it")
    return wrong + check_dropped_lines(requests)


def check_dropped_lines(requests: int) -> list[str]:
    """Read the log again after lines were dropped; return a message if their number is reported wrongly."""
    lines: list[str] = []

    def reported() -> int:
        return sum(int(found[1]) for found in map(REPORTED.search, lines) if found)

    with unread_server() as server:
        server.get(requests)
        reader = threading.Thread(target=lambda: lines.extend(open(server.log, closefd=False)), daemon=True)  # noqa: SIM115
        reader.start()
        give_up = time.monotonic() + 10
        while not reported() and time.monotonic() < give_up:
            time.sleep(0.01)
        server.get(1)
        counted = server.dropped_lines()
        server.end()
        reader.join(10)
    missing = requests + 4 - (len(lines) - len([line for line in lines if REPORTED.search(line)]))
    if reported() == counted == missing > 0:
        return []
    return [f"unread log: {missing} of {requests} lines are missing, {counted} were counted, {reported()} said"]
