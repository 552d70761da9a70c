"""Starts and stops the servers that are measured."""

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

from benchmarks.harness.errors import ServerFailed
from benchmarks.harness.http_client import BrokenAnswer, Connection, build_request
from benchmarks.harness.machine import ROOT, child_environment
from benchmarks.harness.processes import ProcessTree

_POLL_SECONDS: Final = 0.005
_STOP_SECONDS: Final = 5.0
_START_SECONDS: Final = 60.0
_LOG_END: Final = 1500


@dataclass(frozen=True)
class ServerSpec:
    """How to start a server and what to send to it.

    Attributes:
        name: As reported.
        command: An argument `{port}` becomes the port to listen on; `{port2}` and `{port3}` become other free ports.
        send: As for `build_request`.
        environment: Variables; their values may be `{port}` and so on, too.
        folder: Where it is started.
        settings: Its workers and threads, in words.
        card_path: Where it describes the model it serves; empty if nowhere.
        photos: Keys of the photographs it is measured with; empty for all.
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
    """A server that was started and has given its first right answer.

    Attributes:
        start_seconds: From the start of its process to that answer.

    Raises:
        ServerFailed: It did not start, or its first answer was wrong; names the end of its log.
    """

    def __init__(self, spec: ServerSpec, photo: bytes, expect: str) -> None:
        self.spec = spec
        ports = {name: str(free_port()) for name in ("{port}", "{port2}", "{port3}")}
        self.port = int(ports["{port}"])
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by `stop`
        command = [ports.get(part, part) for part in spec.command]
        environment = {name: ports.get(value, value) for name, value in spec.environment.items()}
        started = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            cwd=spec.folder,
            env={**child_environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self.tree = ProcessTree(self.process.pid)
        try:
            self._await_first_answer(photo, expect)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.perf_counter() - started

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.spec.path}"

    def stop(self) -> None:
        """End every process of it: SIGTERM, and after a grace period SIGKILL."""
        self.tree.members()  # find the children before their parents end
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        while self.tree.members():
            self.tree.kill()
            self.process.poll()
            time.sleep(0.01)
        self.process.wait()
        self._log.close()

    def model_card(self) -> dict[str, Any]:
        """Name, variant and sha256 of the model, if the server has a page for it."""
        if not self.spec.card_path:
            return {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_STOP_SECONDS)
        try:
            connection.request("GET", self.spec.card_path)
            card = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return {name: card[name] for name in ("name", "variant", "sha256") if name in card}

    def log_end(self) -> str:
        """The end of its log."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_END))
        return self._log.read().decode(errors="replace").strip()

    def _await_first_answer(self, photo: bytes, expect: str) -> None:
        request = build_request(f"127.0.0.1:{self.port}", self.spec.path, photo, self.spec.send)
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
                if answer.status in (200, 500):  # other statuses may mean that it is not ready yet
                    break
            finally:
                connection.close()
            time.sleep(_POLL_SECONDS)
        raise ServerFailed(f"{self.spec.name}: {problem}; the end of its log:\n{self.log_end()}")


@contextlib.contextmanager
def running(spec: ServerSpec, photo: bytes, expect: str) -> Iterator[RunningServer]:
    """Run a server for the length of a `with` block.

    Raises:
        ServerFailed: It did not start, or its first answer was wrong.
    """
    server = RunningServer(spec, photo, expect)
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """A TCP port of the loopback address that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
