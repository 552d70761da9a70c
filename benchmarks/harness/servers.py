"""Servers under measurement: command → process tree → first right answer → paused while others run → ended by id.

Errors that leave here: `ServerFailed`, with the end of what the server wrote.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.machine import ROOT, quiet_environment
from benchmarks.harness.processes import Tree
from benchmarks.harness.wire import BrokenAnswer, Connection, build_request

_POLL_SECONDS: Final = 0.005
_STOP_SECONDS: Final = 5.0
_START_SECONDS: Final = 60.0
_LOG_END: Final = 1500


class ServerFailed(Exception):
    """The server did not start, or gave a wrong first answer."""


@dataclass(frozen=True)
class Contender:
    """A server and how to ask it. name: as reported. command, environment: a part that is `{port}` becomes the port to
    listen on; `{port2}` and `{port3}` become others that are free.

    send: as for `build_request`. settings: in words, what it was told about workers and threads.
    card_path: where it tells which model it serves. photos: keys of the photographs that it is sent; none: all.
    """

    name: str
    command: tuple[str, ...]
    path: str = "/upload"
    send: str = "multipart:file"
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path = ROOT
    settings: str = ""
    card_path: str = ""
    photos: tuple[str, ...] = ()

    def is_sent(self, photo: str) -> bool:
        """Whether it is measured with this photograph."""
        return not self.photos or photo in self.photos


class RunningServer:
    """One started contender. start_seconds: from the start of its process to its first right answer."""

    def __init__(self, contender: Contender, photo: bytes, expect: str) -> None:
        self.contender = contender
        ports = {name: str(free_port()) for name in ("{port}", "{port2}", "{port3}")}
        self.port = int(ports["{port}"])
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by `stop`
        command = [ports.get(part, part) for part in contender.command]
        environment = {name: ports.get(value, value) for name, value in contender.environment.items()}
        started = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            cwd=contender.folder,
            env={**quiet_environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self.tree = Tree(self.process.pid)
        try:
            self._await_first_answer(photo, expect)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.perf_counter() - started

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.contender.path}"

    def pause(self) -> None:
        """Make it cost no CPU until `resume`."""
        self.tree.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.tree.signal(signal.SIGCONT)

    def stop(self) -> None:
        """End every process of it, politely at first."""
        self.tree.members()  # learn who there is before parents leave their children
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        self.resume()
        deadline = time.monotonic() + _STOP_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        while self.tree.members():
            self.tree.signal(signal.SIGKILL)
            self.process.poll()
            time.sleep(0.01)
        self.process.wait()
        self._log.close()

    def model_card(self) -> dict[str, Any]:
        """Name, variant and sha256 of the model, where the server tells them."""
        if not self.contender.card_path:
            return {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_STOP_SECONDS)
        try:
            connection.request("GET", self.contender.card_path)
            card = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return {name: card[name] for name in ("name", "variant", "sha256") if name in card}

    def log_end(self) -> str:
        """The end of what it wrote."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_END))
        return self._log.read().decode(errors="replace").strip()

    def _await_first_answer(self, photo: bytes, expect: str) -> None:
        request = build_request(f"127.0.0.1:{self.port}", self.contender.path, photo, self.contender.send)
        deadline = time.monotonic() + _START_SECONDS
        problem = "no answer"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                problem = f"its process ended with status {self.process.returncode}"
                break
            connection = Connection("127.0.0.1", self.port, _START_SECONDS)
            try:
                answer = connection.exchange(request)
            except (OSError, BrokenAnswer, ValueError) as error:
                problem = f"no answer: {error}"
            else:
                if answer.is_right(expect):
                    return
                problem = f"status {answer.status}, {answer.body[:200]!r}, where {expect} is right"
                if answer.status in (200, 500):  # anything else may be a server that is not ready yet
                    break
            finally:
                connection.close()
            time.sleep(_POLL_SECONDS)
        raise ServerFailed(f"{self.contender.name}: {problem}; the end of its log:\n{self.log_end()}")


@contextlib.contextmanager
def running(contender: Contender, photo: bytes, expect: str) -> Iterator[RunningServer]:
    """A server for the length of a `with` block; raises `ServerFailed`."""
    server = RunningServer(contender, photo, expect)
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """A TCP port of the loopback address that nobody has just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
