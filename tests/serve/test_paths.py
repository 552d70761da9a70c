"""Tests that a path is guarded and counted as its route is, however the path is written."""

import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from serve.api.boundary import Boundary
from tests.serve.conftest import ClientFor
from tests.server_process import ServerProcess, running_server
from tests.tiny_model import PATH as TINY_MODEL

PROBES = ["/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"]
OPEN = [*PROBES, "/", "/model", "/metrics", "/openapi.json", "/docs"]
MODEL = "/v2/models/tiny"
GUARDED = (
    "/upload",
    "/explain",
    "/v2",
    *(f"{MODEL}{version}{more}" for version in ("", "/versions/1") for more in ("", "/ready", "/infer")),
)
KEY = b"X-API-Key: the-key\r\n"
ENDS = (
    "%0A",
    "%0a",
    "%0D",
    "%0D%0A",
    "%00",
    "%09",
    "%7F",
    "%C2%85",
    "%20",
    "%2F",
    "%3F",
    "%23",
    ";",
    ";a=b",
    "/",
    "/.",
    "/..",
    "%2E",
)


def spellings(path: str) -> Iterator[str]:
    """Return variants of a path that the server takes for other paths."""
    yield from (path + end for end in ENDS)
    yield f"/{path}"
    yield f"/.{path}"
    yield f"/x/..{path}"
    yield f"/%0A{path}"
    yield f"/%2F{path[1:]}"
    yield path.replace("/", "//")
    yield path.replace("/", "/%0D")
    if path.upper() != path:
        yield path.upper()


def encoded(path: str) -> str:
    """Return the path with its letters percent-encoded."""
    return "".join(f"%{ord(each):02X}" if each.isalpha() else each for each in path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("the-key\n")
    flags = ("--model", str(TINY_MODEL), "--log-format", "json", "--api-keys-file", str(keys))
    with running_server(sys.executable, *flags) as process:
        yield process


def test_the_tested_paths_include_every_route(client: TestClient) -> None:
    assert isinstance(client.app, Boundary)
    routes = [route for route in client.app.router.routes if isinstance(route, Route)]
    templates = {route.path.format(name="tiny", version="1") for route in routes}
    assert templates == {*OPEN, *GUARDED}


class Asking:
    """Sends requests over one connection at a time and reads their status."""

    def __init__(self, server: ServerProcess) -> None:
        self.authority = urlsplit(server.url).netloc

    def status(self, target: str, key: bytes, absolute: bool = False, method: str = "GET") -> int:
        host, _, port = self.authority.partition(":")
        target = f"http://{self.authority}{target}" if absolute else target
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(
                b"%s %s HTTP/1.1\r\nHost: %s\r\n%s\r\n"
                % (method.encode(), target.encode("latin-1"), self.authority.encode(), key)
            )
            found = re.match(rb"HTTP/1\.1 (\d{3}) ", raw.recv(4096))
        assert found, target
        return int(found[1])


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("absolute", [False, True], ids=["origin form", "absolute form"])
@pytest.mark.parametrize("path", [*OPEN, *GUARDED])
def test_no_spelling_of_a_path_bypasses_the_key_check(
    server: ServerProcess, path: str, absolute: bool, method: str
) -> None:
    ask = Asking(server)
    plain = ask.status(path, KEY, absolute, method)
    assert plain in (200, 405, 411, 415)
    assert ask.status(encoded(path), KEY, absolute, method) == plain
    for same in (path, encoded(path)):
        assert ask.status(same, b"", absolute, method) == (plain if path in OPEN else 401)
    for other in set(spellings(path)) - {*OPEN, *GUARDED}:
        assert ask.status(other, KEY, absolute, method) in (400, 404, 405), other
        assert ask.status(other, b"", absolute, method) in (400, 401, 404), other


@pytest.mark.parametrize("path", [*OPEN, *GUARDED])
@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\t", "\x7f", "\x80"])
def test_control_characters_in_a_target_are_refused(server: ServerProcess, path: str, character: str) -> None:
    ask = Asking(server)
    for key in (KEY, b""):
        assert ask.status(path + character, key) in (400, 401, 404)


def test_paths_with_control_characters_are_counted_as_no_route(client: TestClient) -> None:
    for path in ("/upload%0A", "/v2%0A", "/metrics%0A", "/%00", "/livez%0D"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
    text = client.get("/metrics").text
    assert 'serve_requests_total{code="404",route="none"} 5.0' in text
    assert 'code="404",route="/' not in text


def test_requests_refused_before_routing_are_counted_on_their_route(client_for: ClientFor, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key\n")
    client = client_for(api_keys_file=keys)
    assert client.post("/upload", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.post("/upload").status_code == 401
    assert client.delete("/upload", headers={"X-API-Key": "key"}).status_code == 405
    text = client.get("/metrics").text
    for code in (403, 401, 405):
        assert f'serve_requests_total{{code="{code}",route="/upload"}} 1.0' in text
