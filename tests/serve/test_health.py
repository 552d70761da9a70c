"""`python -m serve health`: its exit status and the line it prints, against servers in each state."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from serve.commands import health
from serve.config.settings import ROOT
from tests.server_process import running_server


def ask(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "serve", "health", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Listens on a port and answers one connection with these bytes, or never if there are none; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def answer_one() -> None:
            connection, _ = listener.accept()
            held.append(connection)
            if answer:
                connection.recv(65536)
                connection.sendall(answer)
                connection.close()

        thread = threading.Thread(target=answer_one, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)
        for connection in held:
            connection.close()


def test_a_ready_server_is_0_whatever_address_it_listens_on(tiny_model: Path) -> None:
    with running_server(
        sys.executable, "--model", str(tiny_model), "--log-format", "json", "--host", "0.0.0.0"
    ) as server:
        port = str(urlsplit(server.url).port)
        status, line, errors = ask(environment={"SERVE_HOST": "0.0.0.0", "SERVE_PORT": port})
    assert (status, line, errors) == (0, f"ready: http://127.0.0.1:{port}/readyz\n", "")


def test_a_closed_port_gives_status_1() -> None:
    with socket.socket() as bound:  # bound but not listening, so that no one else takes the port
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        status, line, _ = ask("--port", str(port))
    assert (status, line) == (1, f"not ready: http://127.0.0.1:{port}/readyz: Connection refused\n")


def test_a_server_that_is_draining_is_1() -> None:
    with answering(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n") as port:
        status, line, _ = ask("--port", str(port))
    assert (status, line) == (1, f"not ready: http://127.0.0.1:{port}/readyz answered 503\n")


def test_a_port_without_http_gives_status_1() -> None:
    with answering(b"220 mail.example.org\r\n") as port:
        status, line, _ = ask("--port", str(port))
    assert (status, line) == (1, f"not ready: http://127.0.0.1:{port}/readyz: no HTTP response (BadStatusLine)\n")


def test_no_response_gives_status_1_in_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(health, "TIMEOUT_SECONDS", 0.2)
    with answering(b"") as port:
        assert health.main(["--port", str(port)], {}) == 1
    assert capsys.readouterr().out == f"not ready: http://127.0.0.1:{port}/readyz did not answer within 0.2 s\n"


def test_a_slow_response_counts_as_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(health, "TIMEOUT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, suppress(ConnectionError):
                for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n":
                    connection.sendall(bytes([byte]))
                    time.sleep(0.1)

        dripping = threading.Thread(target=drip, daemon=True)
        dripping.start()
        started = time.monotonic()
        assert health.main(["--port", str(listener.getsockname()[1])], {}) == 1
        assert time.monotonic() - started < 2
        dripping.join(10)
    assert "did not answer within 0.5 s" in capsys.readouterr().out


@pytest.mark.parametrize("host", ["a b", "x" * 70])
def test_an_invalid_host_name_gives_status_1(host: str) -> None:
    status, line, errors = ask("--host", host)
    assert (status, errors) == (1, "")
    assert line.startswith(f"not ready: http://{host}:5000/readyz: ")


def test_an_invalid_setting_gives_status_2() -> None:
    status, line, errors = ask("--port", "many")
    assert (status, line) == (2, "")
    assert errors.startswith("serve: --port='many'")
