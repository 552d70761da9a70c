"""Stand-ins for a request on its way into the application."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from starlette.types import Message

from serve.api.exchange import Exchange
from serve.api.form import UploadedFile
from serve.api.upload import Body, UploadLimits, read_upload
from serve.scheduling.in_flight import InFlightRequest
from serve.scheduling.lifecycle import Lifecycle
from serve.scheduling.upload_budget import UploadBudget

Chunks = Iterable[bytes] | AsyncIterator[bytes]


def started_lifecycle(grace_seconds: float = 30.0) -> Lifecycle:
    lifecycle = Lifecycle(grace_seconds)
    lifecycle.start()
    return lifecycle


def large_budget() -> UploadBudget:
    return UploadBudget(10**9, 30.0)


def make_exchange(headers: Mapping[str, str], chunks: Chunks, path: str = "/upload") -> Exchange:
    """An exchange of a request with these headers, whose body arrives in these chunks; its response goes nowhere."""
    given = aiter(chunks) if isinstance(chunks, AsyncIterator) else iter(chunks)

    async def receive() -> Message:
        following = next(given, None) if not isinstance(given, AsyncIterator) else await anext(given, None)
        return {"type": "http.request", "body": following or b"", "more_body": following is not None}

    async def send(message: Message) -> None:
        pass

    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "scheme": "http", "headers": raw}
    return Exchange({**scope, "query_string": b""}, receive, send, started_lifecycle())


def with_body(
    headers: Mapping[str, str], chunks: Chunks, read: Callable[[Exchange, InFlightRequest, UploadBudget], Any]
) -> Any:
    """What `read` returns or raises for such a request."""

    async def scenario() -> Any:
        budget = large_budget()
        with InFlightRequest(started_lifecycle(), budget) as in_flight:
            result = read(make_exchange(headers, chunks), in_flight, budget)
            return await result if inspect.isawaitable(result) else result

    return asyncio.run(scenario())


def upload_of(headers: Mapping[str, str], chunks: Chunks, limits: UploadLimits) -> list[UploadedFile]:
    """The files of such a request."""
    files: list[UploadedFile] = with_body(
        headers, chunks, lambda exchange, in_flight, budget: read_upload(exchange, in_flight, limits, budget)
    )
    return files


def body_of(headers: Mapping[str, str], chunks: Chunks, max_bytes: int) -> bytes:
    """The body of such a request."""
    return bytes(
        with_body(
            headers, chunks, lambda exchange, in_flight, budget: Body(exchange, in_flight, max_bytes, budget).read()
        )
    )
