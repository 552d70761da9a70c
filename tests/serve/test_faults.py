"""Faults around a running server: a corrupt model file, a full disk, clock jumps, signals, fewer CPUs."""

import ast
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2
import pytest

from serve.config.settings import ROOT
from tests.server_process import ServerProcess, running_server
from tests.tiny_model import PATH as TINY_MODEL

FLAGS = ("--log-format", "json", "--model")


def classify(url: str, cat: bytes) -> int:
    return httpx2.post(f"{url}/upload", files={"file": ("cat.jpg", cat)}, timeout=30).status_code


def test_a_model_file_corrupted_while_serving_matters_only_at_the_next_start(tmp_path: Path, cat: bytes) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(TINY_MODEL, model)
    with running_server(sys.executable, *FLAGS, str(model)) as server:
        assert classify(server.url, cat) == 200
        model.write_bytes(b"rubbish" * 1000)
        assert classify(server.url, cat) == 200
        model.unlink()
        assert classify(server.url, cat) == 200
        model.write_bytes(b"rubbish" * 1000)
        assert server.stop() == 0
    command = [sys.executable, "-m", "serve", "--port", "0", "--model", str(model)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"serve: model {model} is not a model onnxruntime can load")
    assert len(done.stderr.splitlines()) == 1


def test_a_disk_that_is_full_loses_the_log_and_nothing_else(cat: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "serve", "--port", str(port), *FLAGS, str(TINY_MODEL)]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(command, cwd=ROOT, stdout=full, stderr=full)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        while True:
            try:
                if httpx2.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx2.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert [classify(url, cat) for _ in range(5)] == [200] * 5
        assert httpx2.get(f"{url}/nowhere").status_code == 404
        process.terminate()
        assert process.wait(30) in (0, 120)  # 120: Python could not flush standard output
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("path", sorted((ROOT / "serve").rglob("*.py")), ids=lambda path: path.stem)
def test_only_the_log_reads_the_wall_clock(path: Path) -> None:
    """Deadlines and timings go by clocks that only go forward; the log says the time of day."""
    tree = ast.parse(path.read_text())
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    used = {f"{node.value.id}.{node.attr}" for node in attributes if isinstance(node.value, ast.Name)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "time"]
    used |= {f"time.{name.name}" for node in imports for name in node.names}
    jumping = used & {"time.time", "time.time_ns", "time.localtime", "datetime.utcnow", "datetime.today"}
    assert jumping <= ({"time.time"} if path.name == "log.py" else set())


# sitecustomize, imported by each Python of this server: shifts the time of day by the seconds in a file.
OTHER_CLOCK = """
import os, time
from pathlib import Path
real, off = time.time, Path(os.environ["CLOCK_OFF_BY"])
time.time = lambda: real() + float(off.read_text())
time.time_ns = lambda: int(1e9 * time.time())
"""


def test_a_clock_jump_ends_no_request_and_no_connection(tmp_path: Path, cat: bytes) -> None:
    (tmp_path / "sitecustomize.py").write_text(OTHER_CLOCK)
    off = tmp_path / "off"
    off.write_text("0")
    environment = {"PYTHONPATH": str(tmp_path), "CLOCK_OFF_BY": str(off)}
    with (
        running_server(sys.executable, *FLAGS, str(TINY_MODEL), environment=environment) as server,
        httpx2.Client(base_url=server.url, timeout=30) as client,
    ):
        days = []
        for seconds in (0, 86_400, -30 * 86_400, 3600):
            (tmp_path / "next").write_text(str(seconds))
            (tmp_path / "next").replace(off)  # atomically, because the server reads it all the time
            time.sleep(1.2)  # uvicorn looks at the clock for its Date header once a second
            files = [("file", ("cat.jpg", cat))] * 8
            results = client.post("/upload", files=files).json()["results"]
            assert all(result["label"] for result in results)
            assert client.get("/readyz").status_code == 200
            days.append(
                round((parsedate_to_datetime(client.get("/livez").headers["date"]).timestamp() - time.time()) / 3600)
            )
        assert days == [0, 24, -720, 1]
        assert server.stop() == 0
        uploads = [line for line in server.log if line.get("path") == "/upload"]
        assert len(uploads) == 4
        assert all(0 < line["ms"] < 30_000 and min(line["stages_ms"].values()) >= 0 for line in uploads)


def test_a_second_sigterm_changes_nothing(cat: bytes) -> None:
    with running_server(sys.executable, *FLAGS, str(TINY_MODEL)) as server:
        statuses: list[int] = []

        def ask() -> None:
            try:
                statuses.append(classify(server.url, cat))
            except httpx2.TransportError:  # the server had stopped listening
                statuses.append(0)

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        give_up = time.monotonic() + 30
        while not any("POST /upload 200" in line for line in server.lines):
            assert time.monotonic() < give_up
            time.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
        assert server.stop() == 0
        for thread in threads:
            thread.join(30)
    assert set(statuses) <= {200, 503, 0}
    assert len(statuses) == 20


def test_a_server_goes_on_with_fewer_cpus(cat: bytes) -> None:
    with running_server(sys.executable, *FLAGS, str(TINY_MODEL)) as server:
        assert classify(server.url, cat) == 200
        one = {min(os.sched_getaffinity(0))}
        restrict(server, one)
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(classify(server.url, cat))) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert statuses == [200] * 20
        restrict(server, os.sched_getaffinity(0))
        assert classify(server.url, cat) == 200


def restrict(server: ServerProcess, cpus: set[int]) -> None:
    """As `taskset --all-tasks --pid` does."""
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cpus)


def test_a_batch_of_32_delays_another_clients_single_image_only_a_little(cat: bytes) -> None:
    with running_server(sys.executable, *FLAGS, str(TINY_MODEL), "--threads", "1") as server:
        large = (ROOT / "tests" / "data" / "photos" / "coffee.jpg").read_bytes()
        finished: dict[str, float] = {}

        def batch() -> None:
            files = [("file", (f"{number}.jpg", large)) for number in range(32)]
            assert httpx2.post(f"{server.url}/upload", files=files, timeout=60).status_code == 200
            finished["batch"] = time.monotonic()

        thread = threading.Thread(target=batch)
        thread.start()
        time.sleep(0.03)
        assert classify(server.url, cat) == 200
        finished["single"] = time.monotonic()
        thread.join(60)
        assert finished["single"] < finished["batch"]
