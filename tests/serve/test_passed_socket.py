"""A socket on which systemd listens for the server, as in sd_listen_fds(3)."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager

import httpx2
import pytest

from serve.config.settings import ROOT
from tests.server_process import ServerProcess, running_server
from tests.tiny_model import PATH as TINY_MODEL

# Becomes the server, with what systemd would give it: descriptor 3, and the variables.
ACTIVATE = """
import os, sys
os.dup2(int(os.environ["DESCRIPTOR"]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": os.environ["PASSED"]}
os.execv(sys.executable, [sys.executable, "-m", "serve", *sys.argv[1:]])
"""
FLAGS = ("--model", str(TINY_MODEL), "--log-format", "json")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def activated(listener: socket.socket, *flags: str) -> AbstractContextManager[ServerProcess]:
    """Runs a server that is passed a socket."""
    descriptor = listener.fileno()
    environment = {"DESCRIPTOR": str(descriptor), "PASSED": "1"}
    return running_server(
        sys.executable, *FLAGS, *flags, environment=environment, code=ACTIVATE, descriptors=[descriptor]
    )


def refusal(passed: socket.socket, count: str = "1") -> str:
    """Returns the line with which a server refuses what it was passed."""
    done = subprocess.run(
        [sys.executable, "-c", ACTIVATE, *FLAGS],
        cwd=ROOT,
        env={"DESCRIPTOR": str(passed.fileno()), "PASSED": count, "PATH": "/usr/bin:/bin"},
        pass_fds=[passed.fileno()],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_passed_socket_is_served_and_stays_open_when_the_server_ends(
    listener: socket.socket, cat: bytes, workers: str
) -> None:
    host, port = listener.getsockname()
    for _ in range(2):  # the second server takes the socket over
        with activated(listener, "--workers", workers) as server:
            assert server.url == f"http://{host}:{port}"
            assert httpx2.post(f"{server.url}/upload", files={"file": ("cat.jpg", cat)}).status_code == 200
            assert server.stop() == 0
        waiting = socket.create_connection((host, port), timeout=5)  # the kernel holds it until a server comes
        waiting.close()


def test_the_servers_address_is_the_sockets_own(listener: socket.socket) -> None:
    """Without a host name of its own, a server on loopback answers to loopback names only, whatever --host says."""
    with activated(listener, "--host", "0.0.0.0") as server:
        assert httpx2.get(server.url, headers={"Host": "pictures.example"}).status_code == 403
        assert httpx2.get(f"{server.url}/livez").status_code == 200


def test_variables_for_another_process_are_ignored(listener: socket.socket) -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    with running_server(sys.executable, *FLAGS, environment=environment) as server:
        assert server.url != f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_anything_but_one_listening_tcp_socket_is_refused(listener: socket.socket) -> None:
    told = (
        "serve: systemd did not pass exactly one listening TCP socket; the socket unit needs a single ListenStream= "
        "with a port, and no Accept=yes\n"
    )
    assert refusal(listener, "2") == told
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        assert refusal(datagrams) == told
    with socket.create_connection(listener.getsockname()) as connected:
        assert refusal(connected) == told
    with socket.socket(socket.AF_UNIX) as local:
        local.bind("\0densenet-server-test")
        local.listen()
        assert refusal(local) == told
