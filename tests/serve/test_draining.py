"""Over real connections: no accepted request is lost on SIGTERM, and none is computed for a disconnected client."""

import asyncio
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import uvicorn
from PIL import Image

from serve.api.app import create_app
from serve.config.settings import ROOT, Config
from serve.model.classifier import Classifier, load_classifier
from serve.scheduling.scheduler import Scheduler
from serve.server.protocol import HttpProtocol
from tests.references import PICTURES
from tests.server_process import ServerProcess, running_server
from tests.tiny_model import PATH as TINY_MODEL

FLAGS = ("--model", str(TINY_MODEL), "--log-format", "json", "--decode", "exact")


@pytest.fixture(scope="module")
def slow_picture() -> bytes:
    """An image that takes tens of milliseconds to decode."""
    buffer = io.BytesIO()
    Image.effect_noise((2400, 1800), 60).convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def tiny_server() -> Iterator[ServerProcess]:
    with running_server(sys.executable, *FLAGS) as server:
        yield server


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


def head(length: int, *lines: str) -> bytes:
    text = ("POST /upload HTTP/1.1", "Host: localhost", "Content-Type: image/jpeg", f"Content-Length: {length}", *lines)
    return "\r\n".join((*text, "", "")).encode()


def send(server: ServerProcess, data: bytes) -> socket.socket:
    """Sends a request after the server has accepted it; returns its connection."""
    raw = socket.create_connection(address(server.url), timeout=30)
    raw.sendall(head(len(data), "Expect: 100-continue", "Connection: close"))
    assert raw.recv(1000).startswith(b"HTTP/1.1 100 ")  # sent once it is ready to read the body
    raw.sendall(data)
    return raw


def receive(raw: socket.socket) -> bytes:
    """The response to a request sent with `send`."""
    with raw, raw.makefile("rb") as answer:
        return answer.read()


def sigterm(server: ServerProcess) -> float:
    server.process.send_signal(signal.SIGTERM)
    return time.monotonic()


def assert_clean_end(server: ServerProcess) -> None:
    assert server.process.wait(10) == 0
    assert not [line for line in server.lines if "Traceback" in line or '"level": "error"' in line]


def test_fifty_requests_in_flight_are_all_answered_after_sigterm(slow_picture: bytes, cat: bytes) -> None:
    with running_server(sys.executable, *FLAGS, "--grace-seconds", "60", "--request-timeout-ms", "60000") as server:
        assert httpx2.post(f"{server.url}/upload", files={"file": ("cat.jpg", cat)}).status_code == 200
        with ThreadPoolExecutor(50) as pool:
            connections = list(pool.map(lambda _: send(server, slow_picture), range(50)))
        sigterm(server)
        answers = [receive(connection) for connection in connections]
        assert [answer[:13] for answer in answers] == [b"HTTP/1.1 200 "] * 50
        assert all(b'"top_k"' in answer for answer in answers)
        assert_clean_end(server)


def test_while_draining_it_answers_503_to_probes_and_new_requests(slow_picture: bytes, cat: bytes) -> None:
    with running_server(sys.executable, *FLAGS, "--threads", "1") as server:
        assert httpx2.post(f"{server.url}/upload", files={"file": ("cat.jpg", cat)}).status_code == 200
        in_flight = [send(server, slow_picture) for _ in range(20)]
        sigterm(server)
        for path in ("/readyz", "/healthz", "/model"):
            answer = httpx2.get(server.url + path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.headers["connection"] == "close"
        assert httpx2.get(f"{server.url}/livez").status_code == 200
        refused = httpx2.post(f"{server.url}/upload", files={"file": ("cat.jpg", cat)})
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["detail"]
        assert refused.headers["connection"] == "close"
        assert [receive(connection)[:13] for connection in in_flight] == [b"HTTP/1.1 200 "] * 20
        assert_clean_end(server)


def test_a_stalled_upload_does_not_outlast_the_grace_period(cat: bytes) -> None:
    with running_server(sys.executable, *FLAGS, "--grace-seconds", "4") as server:
        assert httpx2.post(f"{server.url}/upload", files={"file": ("cat.jpg", cat)}).status_code == 200
        with socket.create_connection(address(server.url), timeout=10) as stalled:
            stalled.sendall(head(1000) + b"half")
            time.sleep(0.2)
            started = sigterm(server)
            assert stalled.recv(1000).startswith(b"HTTP/1.1 503 ")
            assert_clean_end(server)
            assert time.monotonic() - started < 4


RUNAWAY = """
import runpy, sys, time
from serve.model.classifier import Classifier
Classifier.{step} = lambda *_: time.sleep(60)
sys.argv[0] = "serve"
runpy.run_module("serve", run_name="__main__")
"""


@pytest.mark.parametrize("step", ["prepare", "compute"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_step_that_does_not_return_does_not_outlast_the_grace_period(cat: bytes, step: str, workers: str) -> None:
    """The fake sleeps in C, where nothing can interrupt it, as the engine computes there."""
    flags = (*FLAGS, "--grace-seconds", "3", "--workers", workers, "--request-timeout-ms", "60000")
    with running_server(sys.executable, *flags, code=RUNAWAY.format(step=step)) as server:
        files = [("file", ("cat.jpg", cat))] * 2
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(httpx2.post, f"{server.url}/upload", files=files, timeout=30)
            time.sleep(1)
            started = sigterm(server)
            assert answer.result().status_code == 503
        assert_clean_end(server)
        assert time.monotonic() - started <= 3


def test_a_second_ctrl_c_cancels_the_requests_in_flight() -> None:
    with (
        running_server(sys.executable, *FLAGS) as server,
        socket.create_connection(address(server.url), timeout=10) as stalled,
    ):
        stalled.sendall(head(1000) + b"half")
        time.sleep(0.2)
        started = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        server.process.send_signal(signal.SIGINT)
        assert stalled.recv(1000).startswith(b"HTTP/1.1 503 ")
        assert_clean_end(server)
        assert time.monotonic() - started < 3


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    found = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    return bool(found and int(found[1], 16) >> (number - 1) & 1)


def ended_while_it_started() -> bool:
    """Ends a server as soon as it handles SIGTERM; returns whether it had not loaded any library by then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", "--port", "0", *FLAGS], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    give_up = time.monotonic() + 30
    while not catches(process.pid, signal.SIGTERM):
        assert time.monotonic() < give_up
        time.sleep(0.001)
    loaded = "onnxruntime" in Path(f"/proc/{process.pid}/maps").read_text()
    process.terminate()
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in log
    return not loaded


def test_a_signal_during_the_imports_ends_it_normally() -> None:
    """The handler is set before the imports; several tries, because a busy machine may look too late."""
    assert any(ended_while_it_started() for _ in range(5))


def test_an_idle_connection_does_not_delay_the_end() -> None:
    with running_server(sys.executable, *FLAGS) as server, httpx2.Client() as client:
        assert client.get(server.url).status_code == 200  # and the connection stays open
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 2


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = (
    b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1\r\nx\r\n"
)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"rubbish\r\n\r\n", b"400 Bad Request"),
        (GET + b"Content-Length: -1\r\n\r\n", b"400 Bad Request"),
        (GET + b"Host: y\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"GET / HTTP/1.0\r\nHost: localhost\r\nHost: y\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400 Bad Request"),
        (GET + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"400 Bad Request"),
        (GET + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400 Bad Request"),
        (GET + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n", b"400 Bad Request"),
        (GET + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", b"400 Bad Request"),
        (GET + b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", b"200 OK"),
        (GET + b"A: " + b"b" * 70_000 + b"\r\n\r\n", b"431 Request Header Fields Too Large"),
        (GET + b"A: b\r\n" * 120 + b"\r\n", b"200 OK"),
        (GET + b"A: b\r\n" * 11_000 + b"\r\n", b"431 Request Header Fields Too Large"),
        (GET + b"A: " + b"b" * 1_000_000, b"431 Request Header Fields Too Large"),
        (b"GET /" + b"x" * 1_000_000, b"414 URI Too Long"),
    ],
    ids=[
        "rubbish",
        "length",
        "two hosts",
        "no host",
        "no host, and another protocol",
        "no host in HTTP/1.0",
        "two hosts in HTTP/1.0",
        "chunked in HTTP/1.0",
        "coding not understood",
        "coding not understood, apart",
        "not chunked",
        "chunked twice",
        "chunked",
        "large",
        "allowed",
        "many",
        "endless header",
        "endless path",
    ],
)
def test_malformed_requests_and_oversized_heads_get_a_problem(
    tiny_server: ServerProcess, sent: bytes, status: bytes
) -> None:
    with socket.create_connection(address(tiny_server.url), timeout=10) as raw:
        raw.sendall(sent)
        answer = raw.recv(4096)
    assert answer.startswith(b"HTTP/1.1 " + status)
    if status != b"200 OK":
        assert b"application/problem+json" in answer
        assert b"X-Request-ID: " in answer


ID = b"X-Request-ID: the-clients-own\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (CHUNKED.replace(b"Host", ID + b"Host") + b"zz\r\n", b"400"),
        (GET + ID + b"Host: y\r\n\r\n", b"400"),
        (GET + ID + b"A: b\r\n" * 200 + b"\r\n", b"431"),
        (GET + ID + b"A: " + b"b" * 70_000 + b"\r\n\r\n", b"431"),
        (GET + ID + b"Accept: *\r\nA\x00: b\r\n\r\n", b"400"),
    ],
    ids=["chunk", "framing", "many", "large", "character"],
)
def test_a_refused_connection_keeps_its_request_id(tiny_server: ServerProcess, sent: bytes, status: bytes) -> None:
    for request, kept in ((sent, True), (sent.replace(b"the-clients-own", b"a b"), False)):
        with socket.create_connection(address(tiny_server.url), timeout=10) as raw:
            raw.sendall(request)
            answer = raw.recv(4096)
        assert answer.split()[1] == status
        assert (b"X-Request-ID: the-clients-own\r\n" in answer) == kept
        assert b"X-Request-ID: a b" not in answer


def test_a_refusal_does_not_reuse_the_id_of_the_previous_request(tiny_server: ServerProcess) -> None:
    with socket.create_connection(address(tiny_server.url), timeout=10) as raw:
        raw.sendall(GET + ID + b"\r\n")
        assert b"the-clients-own" in raw.recv(4096)
        raw.sendall(b"\x16\x03\x01 rubbish\r\n\r\n")
        answer = raw.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"the-clients-own" not in answer


def test_a_second_head_on_a_connection_has_the_same_limit(tiny_server: ServerProcess) -> None:
    with socket.create_connection(address(tiny_server.url), timeout=10) as raw:
        raw.sendall(GET + b"\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 200 OK")
        raw.sendall(GET + b"A: b\r\n" * 11_000 + b"\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("line", [b"A: b\r\n", b"A: " + b"b" * 50_000], ids=["many", "one without end"])
def test_trailers_are_dropped_and_have_the_same_limit(tiny_server: ServerProcess, line: bytes) -> None:
    with socket.create_connection(address(tiny_server.url), timeout=10) as raw:
        raw.sendall(CHUNKED + b"0\r\nAccept: trailing\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 415 ")  # because the body is not an image
        raw.sendall(CHUNKED + b"0\r\n")
        raw.sendall(line * (600_000 // len(line)))  # unused data is limited, too
        assert raw.recv(4096).startswith(b"HTTP/1.1 431 ")


def test_requests_of_disconnected_clients_are_not_computed(
    config: Config, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first inference blocks until all clients have disconnected; it is discarded, and no other one begins."""
    inferences = []
    may_go_on = threading.Event()
    original = Classifier.compute

    def compute(classifier: Classifier, *arguments: Any) -> Any:
        inferences.append(arguments)
        assert may_go_on.wait(30)
        return original(classifier, *arguments)

    async def leave(at: tuple[str, int], has_begun: bool) -> None:
        _, writer = await asyncio.open_connection(*at)
        writer.write(head(len(cat)) + cat)
        await writer.drain()
        while not (inferences if has_begun else all_are_in()):  # noqa: ASYNC110  another thread's doing
            await asyncio.sleep(0.01)
        writer.close()

    async def all_leave(at: tuple[str, int]) -> None:
        await asyncio.gather(*(leave(at, number == 0) for number in range(100)))

    waiting: list[Any] = []
    run = Scheduler.run

    async def record_call(scheduler: Any, *arguments: Any) -> Any:
        waiting.append(arguments)
        return await run(scheduler, *arguments)

    def all_are_in() -> bool:
        return len(waiting) >= 100

    monkeypatch.setattr(Classifier, "compute", compute)
    monkeypatch.setattr(Scheduler, "run", record_call)
    with serving(Config(model=config.model, max_queue=1000, threads=1)) as at:
        asyncio.run(all_leave(at))
        time.sleep(0.5)  # for the server to notice the last disconnect
        may_go_on.set()
        answer = httpx2.post(f"http://{at[0]}:{at[1]}/upload", files={"file": ("cat.jpg", cat)})
        assert answer.status_code == 200
    assert len(inferences) == 2


@contextmanager
def serving(config: Config) -> Iterator[tuple[str, int]]:
    """Serves the application on a port of this process, with the real HTTP protocol."""
    listener = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(create_app(config, load_classifier(config)), http=HttpProtocol, log_config=None)
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join()


def test_memory_of_a_burst_is_returned() -> None:
    with running_server(sys.executable, *FLAGS) as server:  # a fresh server, because other tests leave memory behind
        give_back(server)


def give_back(tiny_server: ServerProcess) -> None:
    """Sends thirty uploads of 4 MB at a time and waits until their memory is returned to the system."""
    rss = Path(f"/proc/{tiny_server.process.pid}/statm")

    def megabytes() -> float:
        return int(rss.read_text().split()[1]) * 4096 / 2**20

    before = megabytes()
    large = b"x" * 4_000_000
    with ThreadPoolExecutor(30) as pool:
        statuses = list(
            pool.map(
                lambda _: httpx2.post(f"{tiny_server.url}/upload", files={"file": ("x.jpg", large)}).status_code,
                range(30),
            )
        )
    assert set(statuses) == {415}
    picture = (PICTURES / "rgb.png").read_bytes()
    deadline = time.monotonic() + 30
    while megabytes() > before + 40:
        assert time.monotonic() < deadline, f"{before:.0f} MB before, {megabytes():.0f} MB now"
        assert httpx2.post(f"{tiny_server.url}/upload", files={"file": ("a.png", picture)}).status_code == 200
        time.sleep(0.5)
