"""Over real connections: nothing accepted is lost on SIGTERM, and nothing is computed for who has gone."""

import asyncio
import http.client
import io
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import uvicorn
from PIL import Image

from serve.app import create_app
from serve.classifier import Classifier, load_classifier
from serve.config import Config
from tests.server_process import ServerProcess, running_server
from tests.tiny_model import PATH as TINY_MODEL

FLAGS = ("--model", str(TINY_MODEL), "--log-format", "json", "--decode", "exact")


@pytest.fixture(scope="module")
def slow_picture() -> bytes:
    """Takes some tens of milliseconds to decode."""
    buffer = io.BytesIO()
    Image.effect_noise((2400, 1800), 60).convert("RGB").save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


def head(length: int, *lines: str) -> bytes:
    text = ("POST /upload HTTP/1.1", "Host: x", "Content-Type: image/jpeg", f"Content-Length: {length}", *lines)
    return "\r\n".join((*text, "", "")).encode()


def send(server: ServerProcess, data: bytes) -> http.client.HTTPConnection:
    """A request that is complete and whose answer nobody has read yet."""
    connection = http.client.HTTPConnection(*address(server.url), timeout=30)
    connection.request("POST", "/upload", data, {"Content-Type": "image/jpeg"})
    return connection


def receive(connection: http.client.HTTPConnection) -> tuple[int, bytes]:
    """Status and body of the answer to what `send` sent."""
    with closing(connection):
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_fifty_requests_in_flight_are_all_answered_after_sigterm(slow_picture: bytes) -> None:
    with running_server(sys.executable, *FLAGS) as server:
        with ThreadPoolExecutor(50) as pool:
            connections = list(pool.map(lambda _: send(server, slow_picture), range(50)))
        time.sleep(0.1)  # all are in the server's hands
        server.process.send_signal(signal.SIGTERM)
        answers = [receive(connection) for connection in connections]
        assert [status for status, _ in answers] == [200] * 50
        assert all(b"top_k" in body for _, body in answers)
        assert server.process.wait(10) == 0
        assert not [line for line in server.lines if "Traceback" in line or '"level": "error"' in line]


def test_while_draining_it_answers_503_to_probes_and_new_requests(slow_picture: bytes, cat: bytes) -> None:
    with running_server(sys.executable, *FLAGS, "--threads", "1") as server:
        in_flight = [send(server, slow_picture) for _ in range(20)]
        time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        for path in ("/readyz", "/healthz", "/model"):
            answer = httpx2.get(server.url + path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert httpx2.get(f"{server.url}/livez").status_code == 200
        refused = httpx2.post(f"{server.url}/upload", files={"file": ("cat.jpg", cat)})
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["detail"]
        assert refused.headers["connection"] == "close"
        assert [receive(connection)[0] for connection in in_flight] == [200] * 20
        assert server.process.wait(10) == 0


def test_a_stalled_upload_does_not_outlast_the_grace_period() -> None:
    with running_server(sys.executable, *FLAGS, "--grace-seconds", "2") as server:
        with socket.create_connection(address(server.url), timeout=10) as stalled:
            stalled.sendall(head(1000) + b"half")
            time.sleep(0.2)
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert stalled.recv(1000).startswith(b"HTTP/1.1 503 ")
            assert server.process.wait(10) == 0
            assert time.monotonic() - started < 2 + 3  # and what is still sent is read for two seconds
        assert not [line for line in server.lines if "Traceback" in line or '"level": "error"' in line]


def test_an_idle_connection_does_not_hold_up_the_end() -> None:
    with running_server(sys.executable, *FLAGS) as server, httpx2.Client() as client:
        assert client.get(server.url).status_code == 200  # and the connection stays open
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 2


def test_what_is_no_http_is_a_problem_and_headers_have_a_limit(tiny_model: Path) -> None:
    with running_server(sys.executable, *FLAGS) as server:
        for sent, status in (
            (b"rubbish\r\n\r\n", b"400 Bad Request"),
            (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400 Bad Request"),
            (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000, b"431 Request Header Fields Too Large"),
            (b"GET /" + b"x" * 100_000, b"431 Request Header Fields Too Large"),
        ):
            with socket.create_connection(address(server.url), timeout=10) as raw:
                raw.sendall(sent)
                answer = raw.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert b"application/problem+json" in answer
            assert b"X-Request-ID: " in answer
        assert httpx2.get(server.url, headers={"A": "b" * 30_000}).status_code == 200


class Counting:
    """The tiny classifier, slowed down, which counts what it computes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.inferences = 0
        original = Classifier.compute

        def compute(classifier: Classifier, *arguments: Any) -> Any:
            self.inferences += 1
            time.sleep(seconds)
            return original(classifier, *arguments)

        monkeypatch.setattr(Classifier, "compute", compute)


@contextmanager
def serving(config: Config) -> Iterator[tuple[str, int]]:
    """The application on a real port of this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(config, load_classifier(config)), log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join()


def test_a_hundred_clients_that_leave_cost_next_to_nothing(
    config: Config, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch, seconds=0.05)

    async def leave(at: tuple[str, int]) -> None:
        _, writer = await asyncio.open_connection(*at)
        writer.write(head(len(cat)) + cat)
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.close()

    async def all_leave(at: tuple[str, int]) -> None:
        await asyncio.gather(*(leave(at) for _ in range(100)))

    with serving(Config(model=config.model, max_queue=1000, threads=1)) as at:
        asyncio.run(all_leave(at))
        started = time.monotonic()
        answer = httpx2.post(f"http://{at[0]}:{at[1]}/upload", files={"file": ("cat.jpg", cat)})
        assert answer.status_code == 200
        assert time.monotonic() - started < 1  # a hundred would have taken five seconds
        assert 1 < counting.inferences <= 15
