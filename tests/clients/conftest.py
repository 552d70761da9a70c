"""Third-party clients against the real process; the run ends with a table of what each did."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server_process import ROOT, ServerProcess, running_server

# The server's own environment: these clients need other versions of its packages.
PYTHON = ROOT / ".venv" / "runtime" / "bin" / "python"
MODEL = os.environ.get("MODEL") or "auto"
# (client, what it did), in the order of the tests.
TABLE: list[tuple[str, str]] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("what each client did")
    width = max((len(client) for client, _ in TABLE), default=0) + 2
    terminalreporter.write_line("\n".join(f"{client:<{width}}{result}" for client, result in TABLE))


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    with running_server(PYTHON, "--model", MODEL, "--log-format", "json", "--server-timing", "on") as started:
        yield started


@pytest.fixture(scope="session")
def photos() -> dict[str, bytes]:
    folder = ROOT / "tests" / "data" / "photos"
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.jpg"))}


@pytest.fixture(scope="session")
def deployed() -> Path:
    return ROOT / "deploy" / "observability"


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    """A function that runs a command, by default in the project's folder, checks its status and returns its output."""

    def start(*command: object, cwd: Path = ROOT) -> str:
        done = subprocess.run(
            [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        return done.stdout

    return start
