"""Tests that a deadline runs from the end of the upload to the response, and that work ends with its client."""

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.requests import ClientDisconnect

from serve.api.deadlines import while_connected
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


Message = dict[str, Any]


def messages(*types: str) -> tuple[Any, asyncio.Event]:
    """Return an ASGI `receive` that gives these messages, and an event that makes the client disconnect after them."""
    left, waiting = asyncio.Event(), list(types)

    async def receive() -> Message:
        if waiting:
            return {"type": waiting.pop(0)}
        await left.wait()
        return {"type": "http.disconnect"}

    return receive, left


def test_work_completes_while_the_client_is_connected_and_leaves_no_task() -> None:
    async def scenario() -> None:
        receive, left = messages("http.request")
        before = asyncio.all_tasks()
        assert await while_connected(receive, asyncio.sleep(0.01, "done")) == "done"
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        left.set()
        await asyncio.sleep(0.01)  # a disconnect now cancels nothing

    asyncio.run(scenario())


def test_a_disconnect_cancels_only_the_clients_own_work() -> None:
    async def scenario() -> None:
        receive, left = messages("http.request", "http.request")
        cancelled = asyncio.Event()

        async def work() -> None:
            left.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        with pytest.raises(ClientDisconnect):
            await while_connected(receive, work())
        assert cancelled.is_set()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # the task goes on

    asyncio.run(scenario())


def test_other_cancellations_are_not_reported_as_disconnects() -> None:
    async def scenario() -> None:
        receive, _ = messages()
        task = asyncio.ensure_future(while_connected(receive, asyncio.sleep(30)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_work_that_completes_during_a_disconnect_returns_its_result() -> None:
    async def scenario() -> None:
        receive, left = messages()

        async def work() -> str:
            left.set()
            return "done"

        assert await while_connected(receive, work()) == "done"
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(scenario())
