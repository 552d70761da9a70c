"""What a start and a burst of uploads leave is given back to the system."""

import gc
import socket
import threading
import time
from dataclasses import replace

import pytest
import uvicorn
from starlette.testclient import TestClient

from serve import __main__ as main
from serve.api import handlers
from serve.api.app import create_app
from serve.config.settings import Config
from serve.model.classifier import Classifier


def test_memory_is_given_back_once_the_model_is_loaded(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(main, "trim", lambda: steps.append("trim"))
    monkeypatch.setattr(gc, "freeze", lambda: None)  # the tests go on
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: steps.append("run"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert main.serve(config, listener) == 0
    assert steps == ["trim", "run"]


def test_memory_is_given_back_after_a_burst_and_not_without_one(
    config: Config, classifier: Classifier, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed = threading.Event()
    monkeypatch.setattr(handlers, "trim", trimmed.set)
    monkeypatch.setattr(handlers, "_TRIM_SECONDS", 0.05)
    with TestClient(create_app(replace(config, streams=1), classifier)) as client:
        time.sleep(0.3)
        assert not trimmed.is_set()  # nothing has happened
        assert client.post("/upload", files={"file": cat}).status_code == 200
        assert trimmed.wait(10)
