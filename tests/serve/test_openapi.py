"""`/openapi.json` is what the server does: each status it documents is driven, and no other is documented."""

import asyncio
import http.client
import io
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from PIL import Image
from starlette.testclient import TestClient

from serve.arrival import Arrival
from serve.classifier import Classifier
from serve.handlers import Server
from serve.handlers_v2 import InferenceServer
from serve.scheduler import Scheduler
from tests.serve.conftest import ClientFor
from tests.server_process import running_server
from tests.tiny_model import PATH as TINY_MODEL

KEY = {"X-API-Key": "key"}
HANDLERS = {
    "/": (Server, "root"),
    "/upload": (Server, "upload"),
    "/model": (Server, "model"),
    "/livez": (Server, "livez"),
    "/readyz": (Server, "readyz"),
    "/healthz": (Server, "readyz"),
    "/metrics": (Server, "show_metrics"),
    "/openapi.json": (Server, "openapi"),
    "/docs": (Server, "docs"),
    "/v2": (InferenceServer, "metadata"),
    "/v2/health/live": (InferenceServer, "live"),
    "/v2/health/ready": (InferenceServer, "ready"),
    "/v2/models/{name}": (InferenceServer, "model_metadata"),
    "/v2/models/{name}/ready": (InferenceServer, "model_ready"),
    "/v2/models/{name}/infer": (InferenceServer, "infer"),
}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("key\n")
    return path


def picture(side: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, kind)
    return buffer.getvalue()


class Driver:
    """Asks for one status of one operation."""

    def __init__(self, client_for: ClientFor, monkeypatch: pytest.MonkeyPatch, keys: Path) -> None:
        self.client_for = client_for
        self.monkeypatch = monkeypatch
        self.keys = keys

    def ask(self, path: str, method: str, status: int) -> httpx2.Response:
        client = self.prepared(path, status)
        name = "other" if status == 404 else "tiny"
        headers = {} if status == 401 else dict(KEY)
        if status == 403:
            headers["Origin"] = "https://evil.example"
        if status == 431:
            headers["X-Long"] = "x" * 70_000
        target = path.replace("{name}", name)
        if method == "get":
            return client.get(target, headers=headers)
        return self.send(client, target, headers, status)

    def prepared(self, path: str, status: int) -> TestClient:
        settings: dict[str, Any] = {"api_keys_file": self.keys, "max_pixels": 200_000}
        if status == 500:
            owner, name = HANDLERS[path]

            async def broken(*_: Any) -> None:
                raise RuntimeError("broken")

            self.monkeypatch.setattr(owner, name, broken)
        if status == 408:
            settings["body_timeout_ms"] = 1
            self.monkeypatch.setattr(Arrival, "paced", late(Arrival.paced))
        if status == 504:
            self.monkeypatch.setattr(Classifier, "prepare", slow(Classifier.prepare))
        client = self.client_for(**settings)
        if status == 429:
            original = Scheduler.require_room
            self.monkeypatch.setattr(Scheduler, "require_room", lambda each: original(each, 10**6))
        if status == 503:
            cast(Any, client).app.state.lifecycle.begin_drain()
        return client

    def send(self, client: TestClient, path: str, headers: dict[str, str], status: int) -> httpx2.Response:
        data = {
            200: picture(300),
            400: b"",
            413: picture(500),
            415: b"text",
            422: picture(300)[:-40],
        }.get(status, picture(300))
        if status == 504:
            headers["X-Request-Timeout-Ms"] = "20"
        if path == "/upload":
            headers["Content-Type"] = "image/png"
        else:
            size = len(data) + 4
            body = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
            head = json.dumps({"inputs": [body]}).encode()
            data = head + len(data).to_bytes(4, "little") + data
            headers["Inference-Header-Content-Length"] = str(len(head))
        if status == 411:
            return client.send(without_length(client.build_request("POST", path, content=data, headers=headers)))
        return client.post(path, content=data, headers=headers)


def without_length(request: httpx2.Request) -> httpx2.Request:
    del request.headers["content-length"]
    return request


def late(original: Any) -> Callable[..., Any]:
    async def delayed(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        await asyncio.sleep(1)
        async for chunk in chunks:
            yield chunk

    return lambda self, chunks: original(self, delayed(chunks))


def slow(original: Any) -> Callable[..., Any]:
    def prepare(self: Any, job: Any) -> Any:
        time.sleep(0.2)
        return original(self, job)

    return prepare


@pytest.fixture
def driver(client_for: ClientFor, monkeypatch: pytest.MonkeyPatch, keys: Path) -> Driver:
    return Driver(client_for, monkeypatch, keys)


def documented(client: TestClient) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    document = client.get("/openapi.json").json()
    for path, item in document["paths"].items():
        for method in item.keys() & {"get", "post"}:
            for status, response in item[method]["responses"].items():
                yield path, method, int(status), response


def test_every_route_is_documented_and_no_other(client: TestClient) -> None:
    routes = {
        (route.path, method.lower()) for route in cast(Any, client).app.routes for method in route.methods - {"HEAD"}
    }
    assert {(path, method) for path, method, _, _ in documented(client)} == routes
    assert set(HANDLERS) == {path for path, _ in routes}


def test_every_documented_status_is_what_the_server_answers(driver: Driver, keys: Path) -> None:
    """But for 431, which is answered before there is a request."""
    asked = 0
    for path, method, status, response in list(documented(driver.client_for(api_keys_file=keys))):
        if status == 431:
            continue
        with driver.monkeypatch.context() as patched:
            one = Driver(driver.client_for, patched, keys)
            answer = one.ask(path, method, status)
        asked += 1
        assert answer.status_code == status, (path, method, status, answer.text)
        media_type = answer.headers["content-type"].split(";")[0]
        assert media_type in response["content"], (path, method, status, media_type)
        for name, header in response["headers"].items():
            required = name not in ("Server-Timing", "Inference-Header-Content-Length")
            assert not required or name.lower() in answer.headers, (path, status, name, header)
        if media_type == "application/problem+json":
            assert answer.json().keys() >= {"type", "title", "status", "detail"}
    assert asked > 70


def test_a_head_too_large_gets_431_wherever_it_goes(client: TestClient) -> None:
    operations = {(path, method) for path, method, status, _ in documented(client) if status == 431}
    assert operations == {(path, method) for path, method, _, _ in documented(client)}
    with running_server(sys.executable, "--model", str(TINY_MODEL), "--log-format", "json") as server:
        for path, method in sorted(operations):
            connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=10)
            connection.request(method.upper(), path.replace("{name}", "tiny"), headers={"X-Long": "x" * 70_000})
            answer = connection.getresponse()
            assert (answer.status, answer.headers["Content-Type"]) == (431, "application/problem+json")
            assert answer.headers["X-Request-ID"]
            connection.close()


def test_limits_and_keys_are_this_servers_own(client_for: ClientFor, keys: Path) -> None:
    open_one = client_for(max_files=7).get("/openapi.json").json()
    upload = open_one["paths"]["/upload"]["post"]
    form = upload["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["file"]["maxItems"] == 7
    assert upload["parameters"][0]["schema"]["maximum"] == 1000
    assert "401" not in upload["responses"]
    assert "security" not in upload
    guarded = client_for(api_keys_file=keys).get("/openapi.json").json()
    assert guarded["paths"]["/upload"]["post"]["security"] == [{"bearer": []}, {"apiKey": []}]
    assert set(guarded["components"]["securitySchemes"]) == {"bearer", "apiKey"}


def test_docs_is_a_page_that_needs_no_other_host_and_no_script(client: TestClient) -> None:
    answer = client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "<script" not in answer.text
    links = re.findall(r'(?:href|src)="([^"]*)"', answer.text)
    assert links
    assert all(link.startswith(("#", "/openapi.json")) for link in links)
    document = client.get("/openapi.json").json()
    for path, item in document["paths"].items():
        for method in item.keys() & {"get", "post"}:
            assert f"<code>{method.upper()} {path}</code>" in answer.text
    for name in document["components"]["schemas"]:
        assert f'id="{name}"' in answer.text
    for link in links:
        assert not link.startswith("#") or f'id="{link[1:]}"' in answer.text
