"""Runs the server as a separate process on a free local port."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 30.0
STOP_SECONDS = 40.0


def wait_for(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Waits until a condition holds; fails after so many seconds."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


class ServerProcess:
    """A server that has started and is ready.

    Attributes:
        process: The process.
        lines: What it has written to standard error.
        url: Its address.
    """

    def __init__(
        self,
        python: str | Path,
        *flags: str,
        environment: dict[str, str] | None = None,
        code: str = "",
        descriptors: Sequence[int] = (),
    ) -> None:
        self.process = subprocess.Popen(
            [str(python), *(["-c", code] if code else ["-m", "serve"]), "--port", "0", *flags],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            pass_fds=descriptors,
        )
        self.lines: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(START_SECONDS) or not self.url:
            self.process.kill()
            self.process.wait()
            raise RuntimeError("the server did not start: " + "".join(self.lines))

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def wait_for_line(self, text: str) -> str:
        """Waits for a log line that contains this text, and returns it."""
        give_up = time.monotonic() + START_SECONDS
        while not (found := [line for line in self.lines if text in line]):
            if time.monotonic() > give_up:
                raise RuntimeError(f"the log has no line with {text!r}")
            time.sleep(0.01)
        return found[0]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(STOP_SECONDS)
        self._reader.join(STOP_SECONDS)
        return status

    def _read(self) -> None:
        if self.process.stderr is None:
            raise RuntimeError("standard error is not piped")
        with self.process.stderr as stream:
            for line in stream:
                self.lines.append(line)
                if not self.url and line.startswith("{"):
                    self.url = json.loads(line).get("url", "")
                    if self.url:
                        self._ready.set()
        self._ready.set()  # the process has ended, ready or not


@contextmanager
def running_server(
    python: str | Path,
    *flags: str,
    environment: dict[str, str] | None = None,
    code: str = "",
    descriptors: Sequence[int] = (),
) -> Iterator[ServerProcess]:
    """Runs a server within a `with` block. If SIGTERM does not end it, it is killed.

    Args:
        python: The interpreter.
        flags: Flags of the server.
        environment: Environment variables in addition to this process's.
        code: Python code to run instead of `-m serve`.
        descriptors: Open files that it inherits.
    """
    server = ServerProcess(python, *flags, environment=environment, code=code, descriptors=descriptors)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            try:
                server.stop()
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()
