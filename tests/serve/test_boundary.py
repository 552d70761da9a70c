"""Tests that a request whose client has gone ends quietly, wherever it is, and that errors become responses."""

import asyncio
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
