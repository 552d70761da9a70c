"""The real process: how it starts, fails to start and ends, and that it makes no outbound connections."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from serve.config.settings import ROOT
from tests.server_process import ServerProcess, running_server

NO_TORCH = """
import runpy, sys
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "onnx", "onnxscript", "export"}:
            raise ImportError(name + " is not to be imported")
sys.meta_path.insert(0, Refusing())
try:
    import torch
except ImportError:
    sys.argv[0] = "serve"
    runpy.run_module("serve", run_name="__main__")
"""


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    with running_server(sys.executable, "--model", str(tiny_model), "--log-format", "json") as process:
        yield process


def address(server: ServerProcess) -> tuple[str, int]:
    parts = urlsplit(server.url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


def start_and_fail(*flags: str, environment: dict[str, str] | None = None) -> tuple[int, str, float]:
    """Exit status, standard error and duration of a failed start."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "serve", *flags],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stderr, time.perf_counter() - started


def test_the_start_up_line_names_the_smallest_cpu_limit(tiny_model: Path) -> None:
    one = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "--cpu-list", one, sys.executable]
    process = subprocess.Popen(
        [*command, "-m", "serve", "--port", "0", "--model", str(tiny_model), "--log-format", "json"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    line = json.loads(process.stderr.readline())["message"]
    process.terminate()
    process.communicate(timeout=30)
    assert "with 1 CPU (all that this process may run on; streams 1, intra-op threads 1)" in line


def test_the_documented_curl_commands_work(server: ServerProcess, cat: bytes) -> None:
    assert httpx2.get(server.url).text == "Server is Running\n"
    prediction = httpx2.post(f"{server.url}/upload", files={"file": ("cat.jpg", cat)}).json()
    assert prediction["model"] == "tiny"
    assert len(prediction["top_k"]) == 5


def test_it_starts_without_torch(tiny_model: Path, cat: bytes) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", NO_TORCH, "--port", "0", "--model", str(tiny_model), "--log-format", "json"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr
        url = json.loads(process.stderr.readline())["url"]
        assert httpx2.post(f"{url}/upload", files={"file": ("cat.jpg", cat)}).status_code == 200
    finally:
        process.terminate()
        _, _ = process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_status_0(number: int, tiny_model: Path) -> None:
    with running_server(sys.executable, "--model", str(tiny_model), "--log-format", "json") as process:
        assert httpx2.get(process.url).status_code == 200
        assert process.stop(number) == 0
        assert not [line for line in process.lines if "Traceback" in line]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "none.onnx"], "model none.onnx: no such file or directory; make it with 'make export'"),
        (["--model", "RUBBISH"], "rubbish.onnx is not a model onnxruntime can load"),
        (["--model", "resnet50"], "no model resnet50 in models/; make one with 'make export' in a checkout"),
        (
            ["--model", "TINY", "--class-index", "INDEX"],
            "2 labels for a model of 1000 classes: none for class 2, 3, 4 and 995 more",
        ),
        (["--port", "high"], "--port='high': not a whole number from 0 to 65535"),
        (["--model", "x" * 5000 + ".onnx"], "file name too long"),
        (["--model", "TINY", "--host", "256.0.0.1"], "cannot listen on 256.0.0.1"),
        (["--model", "TINY", "--host", "a..b"], "cannot listen on a..b port 0: not a valid host name"),
    ],
)
def test_a_failed_start_gives_one_line_and_status_2(
    flags: list[str], words: str, tiny_model: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"0": ["n0", "a"], "1": ["n1", "b"]}))
    rubbish = tmp_path / "rubbish.onnx"
    rubbish.write_bytes(b"rubbish")
    names = {"TINY": str(tiny_model), "INDEX": str(index), "RUBBISH": str(rubbish)}
    status, text, seconds = start_and_fail("--port", "0", *(names.get(flag, flag) for flag in flags))
    assert (status, text.count("\n")) == (2, 1)
    assert words in text
    assert text.startswith("serve: ")
    assert seconds < 15  # at once, even on a busy machine


def test_settings_are_read_from_the_environment() -> None:
    status, text, _ = start_and_fail(environment={"SERVE_MAX_FILES": "none"})
    assert status == 2
    assert "SERVE_MAX_FILES='none'" in text


def test_each_request_is_one_line_of_json(server: ServerProcess) -> None:
    httpx2.get(f"{server.url}/a%0Ab", headers={"X-Request-ID": "seen-here"})
    deadline = time.monotonic() + 5
    while not (found := [line for line in server.log if line.get("request_id") == "seen-here"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert found[0]["logger"] == "serve.access"
    assert (found[0]["method"], found[0]["path"], found[0]["status"]) == ("GET", "/a%0Ab", 404)
    assert {"time", "level", "bytes_in", "bytes_out", "ms", "client"} <= set(found[0])


def test_a_chunked_body_is_refused_at_the_limit_and_the_response_arrives(tiny_model: Path) -> None:
    with running_server(
        sys.executable, "--model", str(tiny_model), "--max-request-bytes", "100000", "--log-format", "json"
    ) as process:
        connection = http.client.HTTPConnection(*address(process), timeout=10)
        connection.putrequest("POST", "/upload")
        connection.putheader("Content-Type", "image/jpeg")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        for _ in range(300):  # 3 MB; the limit is 0.1
            connection.send(b"2710\r\n" + b"\0" * 10_000 + b"\r\n")
        answer = connection.getresponse()
        assert answer.status == 413
        assert answer.getheader("Connection") == "close"
        assert b"100000 bytes" in answer.read()


def test_a_declared_length_over_the_limit_is_refused_unread(server: ServerProcess) -> None:
    with socket.create_connection(address(server), timeout=10) as raw:
        raw.sendall(
            b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: 99999999999\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        answer = raw.makefile("rb").read()  # reads until the server closes
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer
    assert b"20971520 bytes" in answer


def test_a_length_with_too_many_digits_is_refused(server: ServerProcess) -> None:
    with socket.create_connection(address(server), timeout=10) as raw:
        raw.sendall(
            b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: %s5\r\n\r\nhello"
            % (b"0" * 5000)
        )
        answer = raw.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"5001 digits; the limit is 20 digits" in answer


def test_a_client_that_disconnects_leaves_only_its_log_line(server: ServerProcess) -> None:
    with socket.create_connection(address(server), timeout=10) as raw:
        raw.sendall(
            b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n"
            b"X-Request-ID: gone\r\n\r\nhalf"
        )
    deadline = time.monotonic() + 5
    while not (found := [line for line in server.log if line.get("request_id") == "gone"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [line["status"] for line in found] == [499]
    assert httpx2.get(f"{server.url}/livez").status_code == 200


def test_a_connection_serves_many_requests(server: ServerProcess, cat: bytes) -> None:
    with httpx2.Client() as client:
        answers = [client.post(f"{server.url}/upload", files={"file": ("c.jpg", cat)}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert all(answer.headers.get("connection") != "close" for answer in answers)


def test_the_process_opens_no_socket_except_its_listener(server: ServerProcess, cat: bytes) -> None:
    """onnxruntime's wheel would send usage statistics; this checks every TCP and UDP socket of the process in /proc."""
    httpx2.post(f"{server.url}/upload", files={"file": ("cat.jpg", cat)})
    _, port = address(server)
    pid = server.process.pid
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = str(link.readlink())
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    local_ports, remotes = set(), set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in inodes:
                local_ports.add(int(fields[1].rsplit(":", 1)[1], 16))
                remotes.add(fields[2].split(":")[0])
    assert local_ports == {port}
    assert remotes <= {"00000000", "0100007F"}  # none, or 127.0.0.1
    assert "onnxruntime" in Path(f"/proc/{pid}/maps").read_text()  # this is the right process


def test_usage_statistics_are_off_before_onnxruntime_is_imported() -> None:
    code = (
        "import os, sys\n"
        "class Watching:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Watching())\n"
        "import serve.model.session\n"
    )
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "1\n"
