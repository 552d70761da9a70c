"""Tests that memory is returned to the system after loading and after a burst of uploads."""

import socket
import threading
import time
from dataclasses import replace

import pytest
import uvicorn
from starlette.testclient import TestClient

from serve.api import pipeline
from serve.api.app import create_app
from serve.commands import serve
from serve.config.settings import Config
from serve.model.classifier import Classifier


def test_memory_is_trimmed_once_the_model_is_loaded(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(serve, "trim_malloc", lambda: steps.append("trim"))
    monkeypatch.setattr(serve.gc, "freeze", lambda: None)  # because the tests go on in this process
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: steps.append("run"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert serve.serve(config, listener) == 0
    assert steps == ["trim", "run"]


def test_memory_is_trimmed_after_requests_and_not_without_any(
    config: Config, classifier: Classifier, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed = threading.Event()
    monkeypatch.setattr(pipeline, "trim_malloc", trimmed.set)
    monkeypatch.setattr(pipeline, "_TRIM_SECONDS", 0.05)
    with TestClient(create_app(replace(config, streams=1), classifier)) as client:
        time.sleep(0.3)
        assert not trimmed.is_set()  # no request yet
        assert client.post("/upload", files={"file": cat}).status_code == 200
        assert trimmed.wait(10)
