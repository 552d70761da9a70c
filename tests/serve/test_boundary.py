"""Tests that a request whose client has gone ends quietly, and that memory of requests is freed at once."""

import asyncio
import gc
import weakref
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.types import Message

from serve.api.app import create_app
from serve.config.settings import Config
from serve.model.classifier import Classifier
from serve.observability.record import CLIENT_DISCONNECTED, record_of


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/livez", {"host": "elsewhere.example"}),
        ("/livez", {"host": "localhost", "origin": "https://elsewhere.example"}),
        ("/nowhere", {"host": "localhost"}),
        ("/upload", {"host": "localhost", "content-type": "text/html", "content-length": "9"}),
    ],
)
def test_a_refusal_that_its_client_does_not_wait_for_ends_quietly(
    config: Config, classifier: Classifier, path: str, headers: Mapping[str, str]
) -> None:
    async def never(_: Message | None = None) -> Any:
        await asyncio.Event().wait()

    async def scenario() -> bytes:
        app = create_app(Config(model=config.model), classifier)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": path, "scheme": "http", "query_string": b"", "headers": raw}
        async with app.router.lifespan_context(app.router):
            task = asyncio.ensure_future(app(scope, never, never))
            await asyncio.sleep(0.1)  # it sends its response by now, and the client does not read
            record_of(scope).close(CLIENT_DISCONNECTED)
            task.cancel()
            await task
            return app._metrics.render()

    assert b"\nserve_requests_in_progress 0.0\n" in asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/livez", b"localhost", 200),
        ("/nowhere", b"localhost", 404),
        ("/upload", b"localhost", 405),
        ("/livez", b"elsewhere.example", 403),
    ],
)
def test_a_request_is_freed_without_the_garbage_collector(
    config: Config, classifier: Classifier, path: str, host: bytes, status: int
) -> None:
    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    async def scenario() -> bool:
        app = create_app(Config(model=config.model), classifier)

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        head = [(b"host", host)]
        scope = {"type": "http", "method": "GET", "path": path, "scheme": "http", "query_string": b"", "headers": head}
        async with app.router.lifespan_context(app.router):
            await app(scope, receive, send)
        reference = weakref.ref(receive)
        del receive
        return reference() is None

    statuses: list[int | None] = []
    gc.disable()
    try:
        freed = asyncio.run(scenario())
    finally:
        gc.enable()
    assert freed
    assert statuses == [status, None]
