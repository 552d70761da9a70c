"""deploy/systemd: systemd accepts the units, rates their sandbox, and runs the wheel in it.

systemd runs as process 1 of a container that has nothing of this machine but /usr, read-only (systemd-nspawn). Its
network is this machine's.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.server_process import ROOT, wait_for

FOLDER = ROOT / "deploy" / "systemd"
UNITS = ("densenet-server.service", "densenet-server.socket")
CAT = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
PROGRAM = "/opt/densenet-server/bin/densenet-server"
# The distribution's, because the sandbox hides home folders, and with them pyenv's.
PYTHON = "/usr/bin/python3"
START_SECONDS = 30.0


def program(name: str, package: str) -> str:
    """Returns the path of a program that these tests need."""
    found = shutil.which(name)
    assert found, f"these tests need {name}: apt-get install {package}"
    return found


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed as docs/services.md says, in a folder that becomes /opt/densenet-server."""
    (wheel,) = (ROOT / "build" / "dist").glob("*.whl")
    folder = tmp_path_factory.mktemp("opt") / "densenet-server"
    made = subprocess.run([PYTHON, "-m", "venv", folder], capture_output=True, text=True, check=False)
    assert made.returncode == 0, f"these tests need {PYTHON} with venv: apt-get install python3-venv\n{made.stdout}"
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, str(wheel)], check=True)
    command = folder / "bin" / "densenet-server"
    command.write_text(command.read_text().replace(str(folder), "/opt/densenet-server"))
    return folder


@dataclass(frozen=True)
class Machine:
    """A running systemd with the units.

    Attributes:
        nspawn: The process that started it.
        port: The port of the socket unit.
    """

    nspawn: subprocess.Popen[str]
    port: int

    @property
    def leader(self) -> int:
        """The process id of systemd outside."""
        (leader,) = children(self.nspawn.pid)
        return leader

    def systemctl(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts systemctl inside."""
        command = ["nsenter", f"--target={self.leader}", "--all", "systemctl", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def show(self, name: str) -> str:
        """Returns a property of the service, as `systemctl show` prints it."""
        with self.systemctl("show", UNITS[0], "--property", name) as process:
            printed = process.communicate(timeout=30)[0]
        assert process.returncode == 0
        return printed.strip().partition("=")[2]

    @property
    def server(self) -> int:
        """The server's process id outside."""
        inside = self.show("MainPID")
        return next(
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/status")
            if re.search(rf"^NSpid:\t\d+\t{inside}$", read(path), re.MULTILINE)
        )

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        """Returns status and body of a response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
        try:
            connection.request(method, path, body, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended
        return ""


@contextmanager
def booted(environment: Path, folder: Path) -> Iterator[Machine]:
    nspawn = program("systemd-nspawn", "systemd-container")
    assert os.geteuid() == 0, "these tests need root, to start a container"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    changed_port = folder / "port.conf"
    changed_port.write_text(f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n")
    files = {
        environment: "/opt/densenet-server",
        changed_port: f"/etc/systemd/system/{UNITS[1]}.d/port.conf",
        **{FOLDER / unit: f"/etc/systemd/system/{unit}" for unit in UNITS},
    }
    options = ["--quiet", "--keep-unit", "--register=no", "--directory=/", "--volatile=yes", "--console=pipe"]
    binds = [f"--bind-ro={source}:{target}" for source, target in files.items()]
    command = [nspawn, *options, *binds, "--boot", f"systemd.unit={UNITS[0]}"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    machine = Machine(process, port)
    try:
        wait_for(lambda: answers(machine) or process.poll() is not None, START_SECONDS)
        assert process.poll() is None, process.communicate()[0]
        yield machine
    finally:
        if process.poll() is None:
            os.kill(machine.leader, signal.SIGKILL)  # with it ends everything inside, and then systemd-nspawn
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def machine(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with booted(environment, tmp_path_factory.mktemp("machine")) as started:
        yield started


def answers(machine: Machine) -> bool:
    try:
        return machine.request("GET", "/readyz")[0] == 200
    except OSError:
        return False


def status(pid: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in tasks for child in read(path).split()]


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """With a program in place, because `verify` looks for it."""
    analyze = program("systemd-analyze", "systemd")
    stand_in = tmp_path / "densenet-server"
    stand_in.touch(0o755)
    for unit in UNITS:
        (tmp_path / unit).write_text((FOLDER / unit).read_text().replace(PROGRAM, str(stand_in)))
    assert PROGRAM in (FOLDER / UNITS[0]).read_text()
    command = [analyze, "verify", "--man=no", *(str(tmp_path / unit) for unit in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if "densenet-server" in line]
    assert (done.returncode, told) == (0, [])


def test_the_sandbox_is_as_tight_as_the_document_says() -> None:
    analyze = program("systemd-analyze", "systemd")
    command = [analyze, "security", "--offline=true", "--no-pager", str(FOLDER / UNITS[0])]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"exposure level for densenet-server.service: ([0-9.]+) SAFE", printed)
    documented = re.search(r"rates the sandbox ([0-9.]+) \(SAFE\)", (ROOT / "docs" / "services.md").read_text())
    assert found
    assert documented
    assert float(found[1]) <= float(documented[1])


def test_the_service_classifies_and_its_decoders_are_sealed(machine: Machine) -> None:
    code, answer = machine.request("POST", "/upload", CAT)
    assert (code, json.loads(answer)["label"]) == (200, "Egyptian_cat")
    assert 'serve_build_info{decoders="sealed"' in machine.request("GET", "/metrics")[1]


def test_the_sandbox_holds(machine: Machine) -> None:
    assert machine.request("POST", "/upload", CAT)[0] == 200
    server = status(machine.server)
    assert server["Uid"].split()[0] != "0"
    assert (server["NoNewPrivs"], server["Seccomp"]) == ("1", "2")
    assert {server[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    devices = Path(f"/proc/{machine.server}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]
    (fork_server,) = children(machine.server)
    decoders = [status(pid) for pid in children(fork_server)]
    assert decoders
    for decoder in decoders:  # with a filter of their own beyond the unit's
        assert int(decoder["Seccomp_filters"]) == int(server["Seccomp_filters"]) + 1
    assert {Path(f"/proc/{pid}/oom_score_adj").read_text() for pid in children(fork_server)} == {"1000\n"}
    assert (machine.show("OOMPolicy"), machine.show("MemoryMax")) == ("continue", str(2 * 2**30))


def test_a_server_that_was_killed_is_replaced_and_clients_wait_meanwhile(machine: Machine) -> None:
    killed = machine.server
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{killed}").exists())
    began = time.monotonic()
    assert machine.request("POST", "/upload", CAT)[0] == 200  # the port is never closed
    assert time.monotonic() - began > 0.5  # RestartSec=1
    assert machine.server != killed
    assert machine.show("NRestarts") == "1"


def test_stopping_answers_what_was_accepted(environment: Path, tmp_path: Path) -> None:
    with booted(environment, tmp_path) as started:
        with socket.create_connection(("127.0.0.1", started.port), timeout=30) as client:
            head = f"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {len(CAT)}"
            client.sendall(head.encode() + b"\r\n\r\n" + CAT[:100])
            time.sleep(0.5)
            with started.systemctl("stop", *UNITS) as stopping:
                time.sleep(0.5)
                client.sendall(CAT[100:])
                assert client.recv(12) == b"HTTP/1.1 200"
                assert stopping.wait(30) == 0
        assert started.show("Result") == "success"
