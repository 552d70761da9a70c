"""A server whose standard error is a pipe that nobody reads, and so is full after a few requests."""

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
# The smallest pipe that Linux makes.
PIPE_BYTES = 4096
DROPPED = "serve_log_lines_dropped_total"
SAID = re.compile(r"(\d+) lines of this log were dropped")


class UnreadServer:
    """The process, where it listens, and the end of the pipe that would be read."""

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
        """The statuses of so many requests on one connection; `OSError` where one takes five seconds."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        statuses = []
        for _ in range(requests):
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        connection.close()
        return statuses

    def dropped(self) -> int:
        """Lines, as `/metrics` has it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return int(sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(DROPPED)))

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Its exit status after a signal, and the seconds it took; `subprocess.TimeoutExpired` where it hangs."""
        began = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(GRACE_SECONDS + 15), time.monotonic() - began


@contextmanager
def unread_server(*flags: str, code: str = "") -> Iterator[UnreadServer]:
    """One that answers, for the length of a `with` block."""
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
    """What was wrong with so many requests and the end, alone and with workers, and with what is said of lost lines."""
    wrong = []
    for workers in ("1", "2"):
        with unread_server("--workers", workers) as server:
            name = f"unread log, {workers} process{'es' * (workers != '1')}"
            try:
                answered = server.get(requests).count(200)
            except OSError as error:
                answered = 0
                wrong.append(f"{name}: no answer any more ({error})")
            if 0 < answered < requests:
                wrong.append(f"{name}: {answered} of {requests} requests were answered with 200")
            try:
                status, seconds = server.end()
                if status or seconds > GRACE_SECONDS:
                    wrong.append(f"{name}: SIGTERM ended it with {status} after {seconds:.1f} s")
            except subprocess.TimeoutExpired:
                wrong.append(f"{name}: SIGTERM did not end it")
    return wrong + lines_dropped(requests)


def lines_dropped(requests: int) -> list[str]:
    """What was wrong with what is counted and said of lines that nobody read, once somebody reads again."""
    lines: list[str] = []

    def said() -> int:
        return sum(int(found[1]) for found in map(SAID.search, lines) if found)

    with unread_server() as server:
        server.get(requests)
        reader = threading.Thread(target=lambda: lines.extend(open(server.log, closefd=False)), daemon=True)  # noqa: SIM115
        reader.start()
        give_up = time.monotonic() + 10
        while not said() and time.monotonic() < give_up:
            time.sleep(0.01)
        server.get(1)
        counted = server.dropped()
        server.end()
        reader.join(10)
    missing = requests + 4 - (len(lines) - len([line for line in lines if SAID.search(line)]))
    if said() == counted == missing > 0:
        return []
    return [f"unread log: {missing} of {requests} lines are missing, {counted} were counted, {said()} said"]
