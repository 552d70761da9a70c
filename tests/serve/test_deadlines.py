"""Tests that a deadline runs from the end of the upload to the response, and that work ends with its client."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from serve.api.v2 import handlers
from serve.api.v2.messages import parse_request
from serve.model.classifier import Classifier
from tests.references import PICTURES
from tests.serve.conftest import ClientFor
from tests.server_process import running_server
from tests.tiny_model import PATH as TINY_MODEL


def test_a_slow_upload_leaves_the_whole_deadline_to_its_answer(cat: bytes) -> None:
    flags = ("--model", str(TINY_MODEL), "--log-format", "json", "--request-timeout-ms", "1000")
    with running_server(sys.executable, *flags) as server:
        parts = urlsplit(server.url)
        assert parts.port
        with socket.create_connection((parts.hostname or "", parts.port), timeout=10) as raw:
            head = f"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {len(cat)}"
            raw.sendall(head.encode() + b"\r\n\r\n" + cat[:1000])
            time.sleep(1.2)
            raw.sendall(cat[1000:])
            assert raw.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def held(original: Any, gate: threading.Event) -> Any:
    def step(*arguments: Any) -> Any:
        assert gate.wait(30)
        return original(*arguments)

    return step


def test_decoding_that_takes_too_long_ends_with_the_deadline(
    client_for: ClientFor, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classifier, "prepare", held(Classifier.prepare, gate))
    client = client_for()
    picture = (PICTURES / "rgb.png").read_bytes()
    started = time.monotonic()
    answer = client.post("/upload", files=[("file", picture)] * 2, headers={"X-Request-Timeout-Ms": "200"})
    assert (answer.status_code, time.monotonic() - started < 5) == (504, True)
    gate.set()


def test_reading_an_inference_request_ends_with_the_deadline_too(
    client_for: ClientFor, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "parse_request", held(parse_request, gate))
    client = client_for()
    started = time.monotonic()
    answer = client.post("/v2/models/tiny/infer", content=b"{}", headers={"X-Request-Timeout-Ms": "200"})
    assert (answer.status_code, time.monotonic() - started < 5) == (504, True)
    assert "deadline" in answer.json()["error"]
    gate.set()
