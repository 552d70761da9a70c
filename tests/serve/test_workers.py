"""Several worker processes behind one port: load, metrics, replacement and shutdown."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from serve.config.settings import ROOT
from serve.server.supervisor import cpu_share
from tests.hostile.client import megabytes
from tests.server_process import ServerProcess, running_server, wait_for
from tests.tiny_model import PATH as TINY_MODEL

FLAGS = ("--model", str(TINY_MODEL), "--log-format", "json", "--workers", "2", "--grace-seconds", "9")


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    with running_server(sys.executable, *FLAGS) as started:
        wait_for(lambda: len(children(started)) == 2)
        yield started


def children(server: ServerProcess) -> list[int]:
    listed = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return [int(pid) for pid in listed.split()]


def upload(server: ServerProcess, cat: bytes, timeout: float = 20) -> int:
    """The status of one upload, on a connection of its own."""
    return int(httpx2.post(f"{server.url}/upload", files={"file": ("cat.jpg", cat)}, timeout=timeout).status_code)


def metric(server: ServerProcess, name: str) -> float:
    text = httpx2.get(f"{server.url}/metrics").text
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[-1])


UPLOADS = 'serve_requests_total{code="200",route="/upload"}'


@pytest.mark.parametrize(
    ("cpus", "count", "shares"), [(2, 2, [1, 1]), (5, 2, [3, 2]), (64, 4, [16] * 4), (1, 3, [1, 1, 1])]
)
def test_cpus_are_shared_as_evenly_as_possible(cpus: int, count: int, shares: list[int]) -> None:
    assert [cpu_share(cpus, count, number) for number in range(count)] == shares


def test_connections_are_spread_and_none_is_lost_while_a_worker_is_stopped(server: ServerProcess, cat: bytes) -> None:
    still = children(server)[0]
    os.kill(still, signal.SIGSTOP)
    with ThreadPoolExecutor(30) as pool:
        waiting = [pool.submit(upload, server, cat) for _ in range(30)]
        wait_for(lambda: sum(each.done() for each in waiting) >= 3)
        time.sleep(0.5)
        answered = sum(each.done() for each in waiting)
        assert 3 <= answered <= 27  # thirty tosses of a fair coin are outside of this once in four million
        os.kill(still, signal.SIGCONT)
        assert [each.result() for each in waiting] == [200] * 30


def test_each_worker_shows_the_metrics_of_all(server: ServerProcess, cat: bytes) -> None:
    for _ in range(24):
        assert upload(server, cat) == 200
    assert {metric(server, UPLOADS) for _ in range(8)} == {24.0}
    assert metric(server, "serve_requests_in_progress") == 1
    assert metric(server, "serve_queue_depth") == 0
    assert metric(server, 'serve_stage_duration_seconds_count{stage="infer"}') == 24
    resident = sum(megabytes(pid, "VmRSS") for pid in children(server))
    assert metric(server, "process_resident_memory_bytes") == pytest.approx(resident * 1e6, rel=0.1)
    assert metric(server, "process_start_time_seconds") == pytest.approx(time.time(), abs=60)


def test_a_killed_worker_is_replaced_and_its_counts_stay(server: ServerProcess, cat: bytes) -> None:
    for _ in range(12):
        assert upload(server, cat) == 200
    before, spent = children(server), metric(server, "process_cpu_seconds_total")
    os.kill(before[0], signal.SIGKILL)
    # Connections wait for its replacement.
    assert [upload(server, cat) for _ in range(12)] == [200] * 12
    after = children(server)
    assert len(after) == 2
    assert before[1] in after
    assert before[0] not in after
    assert metric(server, UPLOADS) == 24
    assert metric(server, "serve_requests_in_progress") == 1
    assert metric(server, "process_cpu_seconds_total") >= spent
    ended = next(line for line in server.log if "ended by" in line["message"])
    assert ended["message"] == f"worker 1 (process {before[0]}) ended by SIGKILL; starting another"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_accepted_requests_are_answered(
    server: ServerProcess, cat: bytes, number: int
) -> None:
    url = urlsplit(server.url)
    body = cat[:100]
    head = f"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {len(cat)}\r\n\r\n"
    with ExitStack() as stack:
        clients = []
        for _ in range(16):
            client = stack.enter_context(socket.create_connection((url.hostname, url.port), timeout=20))
            client.sendall(head.encode() + body)
            clients.append(client)
        wait_for(lambda: metric(server, "serve_requests_in_progress") == 17)
        server.process.send_signal(number)
        wait_for(lambda: probe(server) == 503)
        for client in clients:
            client.sendall(cat[100:])
        assert [client.recv(65536).split()[1] for client in clients] == [b"200"] * 16
    assert server.process.wait(20) == 0


def probe(server: ServerProcess) -> int:
    return int(httpx2.get(f"{server.url}/readyz").status_code)


def test_a_worker_that_does_not_end_in_time_is_killed() -> None:
    with running_server(sys.executable, *FLAGS[:-1], "1") as server:
        wait_for(lambda: len(children(server)) == 2)
        stuck = children(server)[0]
        os.kill(stuck, signal.SIGSTOP)
        assert server.stop() == 1
        assert "did not end within the grace period; killed it" in server.lines[-1]
        assert not Path(f"/proc/{stuck}").exists()


# Workers may be silent for four seconds rather than thirty; a request to /docs blocks the event loop.
IMPATIENT = """
import runpy, sys, time
import serve.api.handlers, serve.server.supervisor
async def hang(self, request):
    time.sleep(600)
serve.server.supervisor._SILENT_SECONDS = 4
serve.api.handlers.Handlers.docs = hang
sys.argv[0] = "serve"
runpy.run_module("serve", run_name="__main__")
"""


@pytest.fixture
def short_heartbeat_limit() -> Iterator[ServerProcess]:
    with running_server(sys.executable, *FLAGS, code=IMPATIENT) as started:
        wait_for(lambda: len(children(started)) == 2)
        wait_for_ready(started, 2)
        yield started


@pytest.mark.parametrize("how", ["stopped", "its event loop hangs"])
def test_a_worker_that_hangs_is_killed_and_replaced(short_heartbeat_limit: ServerProcess, cat: bytes, how: str) -> None:
    before = children(short_heartbeat_limit)
    with ExitStack() as stack:
        if how == "stopped":
            os.kill(before[0], signal.SIGSTOP)
        else:
            url = urlsplit(short_heartbeat_limit.url)
            hanging = stack.enter_context(socket.create_connection((url.hostname, url.port), timeout=20))
            hanging.sendall(f"GET /docs HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
        wait_for(
            lambda: (
                len(set(children(short_heartbeat_limit)) & set(before)) == 1
                and len(children(short_heartbeat_limit)) == 2
            ),
            20,
        )
    (gone,) = set(before) - set(children(short_heartbeat_limit))
    assert [upload(short_heartbeat_limit, cat) for _ in range(12)] == [200] * 12
    said = [line["message"] for line in short_heartbeat_limit.log if f"(process {gone})" in line["message"]]
    number = before.index(gone) + 1
    assert said == [
        f"worker {number} (process {gone}) sent no heartbeat; killed it",
        f"worker {number} (process {gone}) ended by SIGKILL; starting another",
    ]
    assert short_heartbeat_limit.stop() == 0


def test_workers_are_not_killed_after_the_machine_was_asleep(short_heartbeat_limit: ServerProcess) -> None:
    """As when a laptop's lid was closed: time in which the supervisor was stopped, too, doesn't count."""
    everybody = [short_heartbeat_limit.process.pid, *children(short_heartbeat_limit)]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(7)
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    time.sleep(1.5)
    assert children(short_heartbeat_limit) == everybody[1:]
    assert not [line for line in short_heartbeat_limit.lines if "sent no heartbeat" in line]


def test_busy_workers_are_not_taken_for_hanging(short_heartbeat_limit: ServerProcess, cat: bytes) -> None:
    before = children(short_heartbeat_limit)
    until = time.monotonic() + 8
    with ThreadPoolExecutor(8) as pool:
        while time.monotonic() < until:
            assert set(pool.map(lambda _: upload(short_heartbeat_limit, cat), range(16))) == {200}
    assert children(short_heartbeat_limit) == before


def wait_for_ready(server: ServerProcess, count: int) -> None:
    """Waits until `count` workers have become ready since the start."""
    wait_for(lambda: sum("is ready" in line for line in server.lines) == count, 30)


def test_counts_survive_the_workers_that_counted(server: ServerProcess, cat: bytes) -> None:
    for number in range(3):
        wait_for_ready(server, 2 + number)
        os.kill(children(server)[number % 2], signal.SIGKILL)
        assert upload(server, cat) == 200
    wait_for_ready(server, 5)
    assert metric(server, UPLOADS) == 3
    assert server.stop() == 0


def test_orphans_are_not_taken_for_workers() -> None:
    """As process 1 of a container, the supervisor inherits orphans."""
    command = 'sleep 1 & exec "$0" -m serve --port 0 "$@"'
    with subprocess.Popen(
        ["sh", "-c", command, sys.executable, *FLAGS], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        seen = [process.stderr.readline() for _ in range(3)]
        assert "is ready" in seen[2]
        time.sleep(1.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 0


def test_workers_end_with_the_supervisor(server: ServerProcess) -> None:
    wait_for(lambda: sum("is ready" in line for line in server.lines) == 2)
    left = children(server)
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


def test_a_failed_start_is_reported_once() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = str(taken.getsockname()[1])
        for flags, words in (
            (["--model", "none.onnx", "--port", "0"], "model none.onnx: no such file or directory"),
            (["--model", str(TINY_MODEL), "--port", port], f"port {port}: Address already in use"),
            (["--workers", "0"], "--workers='0': not a whole number from 1 to 256"),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "serve", "--log-level", "error", "--workers", "2", *flags],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert done.returncode == 2
            assert done.stderr.count("\n") == 1
            assert words in done.stderr


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
@pytest.mark.parametrize("count", ["1", "2"])
def test_another_programs_metrics_folder_is_not_used(tmp_path: Path, cat: bytes, name: str, count: str) -> None:
    flags = [*FLAGS[:-4], "--workers", count]
    for folder in (tmp_path, tmp_path / "nowhere"):
        with running_server(sys.executable, *flags, environment={name: str(folder)}) as server:
            assert upload(server, cat) == 200
            assert metric(server, UPLOADS) == 1
            assert metric(server, "process_resident_memory_bytes") > 1e6
    assert list(tmp_path.iterdir()) == []
