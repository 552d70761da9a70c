"""Tests that `/openapi.json` and `/docs` describe what the server does: every route, status and media type."""

import asyncio
import base64
import http.client
import io
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from PIL import Image
from starlette.testclient import TestClient

from serve.api import explain_query, parameters
from serve.api.exchange import Exchange
from serve.api.handlers import Handlers
from serve.api.openapi.docs_page import render_docs_page
from serve.api.openapi.document import TEMPLATE, openapi_document, placeholder_values
from serve.api.parameters import TIMEOUT_HEADER, TIMING_HEADER
from serve.api.v2.handlers import InferenceHandlers
from serve.api.v2.messages import LENGTH_HEADER
from serve.config.settings import Config
from serve.model.classifier import Classifier
from serve.problems import RULES
from serve.scheduling.scheduler import Scheduler
from tests.hostile.pictures import bmp
from tests.serve.conftest import ClientFor
from tests.server_process import ROOT, running_server
from tests.stub_classifier import stub_classifier
from tests.tiny_model import PATH as TINY_MODEL

KEY = {"X-API-Key": "key"}
HANDLERS = {
    "/": (Handlers, "root"),
    "/upload": (Handlers, "upload"),
    "/explain": (Handlers, "explain"),
    "/model": (Handlers, "model"),
    "/livez": (Handlers, "livez"),
    "/readyz": (Handlers, "readyz"),
    "/healthz": (Handlers, "readyz"),
    "/metrics": (Handlers, "metrics"),
    "/openapi.json": (Handlers, "openapi"),
    "/docs": (Handlers, "docs"),
    "/v2": (InferenceHandlers, "metadata"),
    "/v2/health/live": (InferenceHandlers, "live"),
    "/v2/health/ready": (InferenceHandlers, "ready"),
    "/v2/models/{name}": (InferenceHandlers, "model_metadata"),
    "/v2/models/{name}/ready": (InferenceHandlers, "model_ready"),
    "/v2/models/{name}/infer": (InferenceHandlers, "infer"),
    "/v2/models/{name}/versions/{version}": (InferenceHandlers, "model_metadata"),
    "/v2/models/{name}/versions/{version}/ready": (InferenceHandlers, "model_ready"),
    "/v2/models/{name}/versions/{version}/infer": (InferenceHandlers, "infer"),
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
    """Sends requests that get a given status from a given operation."""

    def __init__(self, client_for: ClientFor, monkeypatch: pytest.MonkeyPatch, keys: Path) -> None:
        self.client_for = client_for
        self.monkeypatch = monkeypatch
        self.keys = keys

    def ask(self, path: str, method: str, status: int) -> httpx2.Response:
        client = self.prepared(path, status)
        headers = {} if status == 401 else dict(KEY)
        if status == 403:
            headers["Origin"] = "https://evil.example"
        target = of_model(path, version="2" if status == 404 else "1", name="other" if status == 404 else "tiny")
        if method == "get":
            return client.get(target, headers=headers, params={"labels": "many"} if status == 400 else None)
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
            self.monkeypatch.setattr(Exchange, "next_chunk", late(Exchange.next_chunk))
        if status == 504:
            self.monkeypatch.setattr(Classifier, "prepare", slow(Classifier.prepare))
        client = self.client_for(**settings)
        if status == 429:
            original = Scheduler.require_room
            self.monkeypatch.setattr(Scheduler, "require_room", lambda each: original(each, 10**6))
        if status == 503:
            cast(Any, client).app.lifecycle.begin_drain()
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
        if path in ("/upload", "/explain"):
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


def of_model(path: str, name: str = "tiny", version: str = "1") -> str:
    return path.replace("{name}", name).replace("{version}", version)


def without_length(request: httpx2.Request) -> httpx2.Request:
    del request.headers["content-length"]
    return request


def late(original: Any) -> Callable[..., Any]:
    async def delayed(*arguments: Any) -> Any:
        await asyncio.sleep(1)
        return await original(*arguments)

    return delayed


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
        (route.path, method.lower())
        for route in cast(Any, client).app.router.routes
        for method in route.methods - {"HEAD"}
    }
    assert {(path, method) for path, method, _, _ in documented(client)} == routes
    assert set(HANDLERS) == {path for path, _ in routes}


def test_the_server_answers_with_every_documented_status(driver: Driver, keys: Path) -> None:
    """Except for the responses of connections, which the next test covers."""
    asked = 0
    for path, method, status, response in list(documented(driver.client_for(api_keys_file=keys))):
        if "$ref" in response:
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
            assert answer.json().keys() >= {"type", "title", "status", "detail", "reason"}
    assert asked > 70


@pytest.mark.parametrize(
    ("status", "flags", "sent"),
    [
        (400, (), b"%s %s HTTP/1.1\r\nno header\r\n\r\n"),
        (408, ("--head-timeout-ms", "50"), b"%s %s HTTP/1.1\r\n"),
        (414, (), b"%s %s?" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n"),
        (431, (), b"%s %s HTTP/1.1\r\nX-Long: " + b"x" * 70_000 + b"\r\n\r\n"),
        (503, ("--max-connections", "1", "--max-decode-ms", "5000"), b"%s %s HTTP/1.1\r\n\r\n"),
    ],
)
def test_connection_errors_are_documented_for_every_operation(
    client: TestClient, status: int, flags: tuple[str, ...], sent: bytes
) -> None:
    document = client.get("/openapi.json").json()
    operations = {(path, method): response for path, method, each, response in documented(client) if each == status}
    assert operations.keys() == {(path, method) for path, method, _, _ in documented(client)}
    with running_server(sys.executable, "--model", str(TINY_MODEL), "--log-format", "json", *flags) as server:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as busy:
            if status == 503:  # the only connection allowed is busy for as long as decoding may take
                slow = bmp(7000, 7000, 8, 1, b"\1\0" * 4_000_000)
                head = "POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/bmp\r\n"
                head += f"Content-Length: {len(slow)}"
                busy.sendall(head.encode() + b"\r\n\r\n" + slow)
                time.sleep(1)
            for (path, method), response in operations.items():
                if "$ref" in response:
                    response = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
                with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                    connection.sendall(sent % (method.upper().encode(), of_model(path).encode()))
                    answer = http.client.HTTPResponse(connection)
                    answer.begin()
                assert answer.status == status
                assert answer.headers["Content-Type"] in response["content"]
                always = [
                    name for name in response["headers"] if document["components"]["headers"][name].get("required")
                ]
                assert all(answer.headers[name] for name in always)


def test_the_status_of_every_error_is_documented(client_for: ClientFor, keys: Path) -> None:
    found = list(documented(client_for(api_keys_file=keys)))
    uploads = {status for path, _, status, _ in found if path == "/upload"}
    inference = {status for path, _, status, _ in found if path.endswith("/infer")}
    statuses = {rule.status for rule in RULES.values()}
    assert statuses - inference == {405}  # belongs to no operation
    assert statuses - uploads == {404, 405}  # only inference names a model


def test_the_table_of_statuses_has_those_of_uploads_and_of_unknown_routes(client_for: ClientFor, keys: Path) -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    told = {int(status) for status in re.findall(r"^\| `\w+` \| (\d+) \|", text, re.MULTILINE)}
    uploads = {status for path, _, status, _ in documented(client_for(api_keys_file=keys)) if path == "/upload"}
    assert told == (uploads - {200}) | {404, 405}


def test_every_other_media_type_of_a_success_is_sent(client: TestClient) -> None:
    """The first media type of each operation is what the tests above get."""
    infer = ["/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"]
    binary = "application/octet-stream"
    others = {
        (path, media_type)
        for path, _, status, response in documented(client)
        if status == 200
        for media_type in list(response["content"])[1:]
    }
    assert others == {
        ("/", "text/html"),
        ("/explain", "application/json"),
        *((path, binary) for path in infer),
    }
    headers = {"Accept": "application/json", "Content-Type": "image/png"}
    explained = client.post("/explain", content=picture(300), headers=headers)
    assert explained.headers["Content-Type"] == "application/json"
    assert client.get("/", headers={"Accept": "text/html"}).headers["Content-Type"].startswith("text/html")
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(picture(300)).decode()]}
    for path in infer:
        answer = client.post(of_model(path), json={"inputs": [image], "parameters": {"binary_data_output": True}})
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, binary)
        assert LENGTH_HEADER in answer.headers


def test_documented_request_headers_are_those_the_server_reads(client: TestClient) -> None:
    parameters = client.get("/openapi.json").json()["components"]["parameters"].values()
    headers = {each["name"] for each in parameters if each["in"] == "header"}
    read = {TIMEOUT_HEADER.decode(), TIMING_HEADER.decode(), LENGTH_HEADER.lower(), "x-request-id", "traceparent"}
    assert {header.lower() for header in headers} == read


def test_documented_query_parameters_are_those_the_server_reads(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse_query = parameters.parse_query
    read = set()

    class Query(dict[str, list[str]]):
        """A parsed query that records which parameters are looked up."""

        def get(self, name: str, default: Any = None) -> Any:
            read.add(name)
            return super().get(name, default)

        def __getitem__(self, name: str) -> Any:
            read.add(name)
            return super().__getitem__(name)

        def __contains__(self, name: object) -> bool:
            read.add(str(name))
            return super().__contains__(name)

    for module in (parameters, explain_query):
        monkeypatch.setattr(module, "parse_query", lambda query, known: Query(parse_query(query, known)))
    assert client.post("/upload?top_k=2", content=picture(300), headers={"Content-Type": "image/png"}).is_success
    assert client.post("/explain?size=64", content=picture(300), headers={"Content-Type": "image/png"}).is_success
    assert client.get("/model").is_success
    described = client.get("/openapi.json").json()
    used = json.dumps(described["paths"])
    queries = {
        each["name"]
        for key, each in described["components"]["parameters"].items()
        if each["in"] == "query" and f'"#/components/parameters/{key}"' in used
    }
    known = {*parameters.UPLOAD_PARAMETERS, *parameters.MODEL_PARAMETERS, *explain_query.EXPLAIN_PARAMETERS}
    assert queries == read == known


def test_both_ways_to_name_a_model_are_documented_alike(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    version = {"$ref": "#/components/parameters/version"}
    versioned = [path for path in paths if "/versions/{version}" in path]
    assert len(versioned) == 3
    for path in versioned:
        for method, operation in paths[path].items():
            other = paths[path.replace("/versions/{version}", "")][method]
            parameters = [each for each in operation["parameters"] if each != version]
            assert {**operation, "parameters": parameters, "operationId": other["operationId"]} == other


def test_every_placeholder_is_filled_and_every_value_is_used() -> None:
    arguments = (Config(api_keys_file=Path("keys")), stub_classifier())
    placeholders = re.findall(r"\{\{(\w+)\}\}", TEMPLATE.read_text(encoding="utf-8"))
    assert set(placeholders) == placeholder_values(*arguments).keys()
    assert "{{" not in json.dumps(openapi_document(*arguments))
    assert "{{" not in render_docs_page(openapi_document(*arguments))


def test_a_placeholder_becomes_a_typed_value_or_a_part_of_a_text() -> None:
    name = '"own" \\ {{side}} é'  # nothing in a value is special
    described = openapi_document(Config(max_files=3), stub_classifier(name))
    form = described["paths"]["/upload"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["properties"]["file"]["maxItems"] == 3
    assert "3 files" in described["paths"]["/upload"]["post"]["description"]
    assert described["components"]["parameters"]["name"]["example"] == name
    assert f"images with {name}." in described["info"]["description"]


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    template = TEMPLATE.read_text(encoding="utf-8")
    shared = {f"#/x-responses/{name}" for name in json.loads(template)["x-responses"]}
    assert set(re.findall(r"#/x-responses/\w+", template)) == shared
    described = openapi_document(Config(api_keys_file=Path("keys")), stub_classifier())
    assert "x-responses" not in json.dumps(described)
    references = {each["$ref"] for each in nodes(described) if "$ref" in each}
    components = described["components"]
    kinds = components.keys() - {"securitySchemes"}  # used by name
    assert references == {f"#/components/{kind}/{name}" for kind in kinds for name in components[kind]}


def test_generators_of_clients_find_names_and_whole_schemas(client: TestClient) -> None:
    """openapi-python-client leaves out operations if it cannot map the types of their parameters or arrays."""
    document = client.get("/openapi.json").json()
    operations = [item[method] for item in document["paths"].values() for method in item]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names)
    for parameter in document["components"]["parameters"].values():
        assert parameter["schema"].keys() >= {"type"}
        assert "const" not in parameter["schema"]
    schemas = [each for each in nodes(document["components"]["schemas"]) if each.get("type") == "array"]
    assert len(schemas) > 10
    assert all(each.keys() & {"items", "prefixItems"} for each in schemas)
    results = document["components"]["schemas"]["Results"]["properties"]["results"]
    assert all("$ref" in each for each in results["items"]["oneOf"])


def test_examples_have_the_entries_of_their_schemas(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    shown = [each for each in nodes(document["paths"]) if "example" in each]
    assert len(shown) == 5
    for each in shown:
        reference = each["schema"].get("oneOf", [each["schema"]])[0]["$ref"]
        schema = document["components"]["schemas"][reference.rpartition("/")[2]]
        assert set(schema["required"]) <= each["example"].keys() <= schema["properties"].keys()


def test_the_limits_of_json_are_documented(client: TestClient) -> None:
    infer = client.get("/openapi.json").json()["paths"]["/v2/models/{name}/infer"]["post"]
    assert "8388608 bytes and as many values as 4 tensors" in infer["description"]
    assert "`file`" not in infer["responses"]["400"]["description"]


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Yields all objects in a JSON document."""
    if isinstance(node, dict):
        yield node
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
        yield from nodes(each)


def test_limits_and_keys_are_this_servers_own(client_for: ClientFor, keys: Path) -> None:
    open_one = client_for(max_files=7).get("/openapi.json").json()
    upload = open_one["paths"]["/upload"]["post"]
    form = upload["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["file"]["maxItems"] == 7
    assert open_one["components"]["parameters"]["topK"]["schema"]["maximum"] == 1000
    assert "401" not in upload["responses"]
    assert "security" not in upload
    assert openapi_document(Config(), stub_classifier())["components"]["parameters"]["topK"]["schema"]["maximum"] == 7
    guarded = client_for(api_keys_file=keys).get("/openapi.json").json()
    assert guarded["paths"]["/upload"]["post"]["security"] == [{"bearer": []}, {"apiKey": []}]
    assert set(guarded["components"]["securitySchemes"]) == {"bearer", "apiKey"}


def test_docs_is_a_page_without_scripts_and_other_hosts(client: TestClient) -> None:
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


def test_docs_shows_headers_keys_and_examples(client_for: ClientFor, keys: Path) -> None:
    text = client_for().get("/docs").text
    assert "Keys" not in text
    for header in ("Retry-After", "WWW-Authenticate", "X-Request-ID"):
        assert f'<code id="header-{header}">' in text
    assert '<a href="#header-Retry-After">Retry-After</a>' in text
    assert "path, required" in text
    assert text.count("<summary>Example</summary>") == 5
    assert openapi_document(Config(), stub_classifier())["components"]["parameters"]["topK"]["schema"]["maximum"] == 7
    guarded = client_for(api_keys_file=keys).get("/docs").text
    assert "<code>Authorization: Bearer KEY</code> or <code>X-API-Key: KEY</code>" in guarded
    assert guarded.count('Requires <a href="#key">an API key</a>.') == 9
    assert '<a href="#header-WWW-Authenticate">' in guarded


def test_docs_has_the_requested_address(client: TestClient) -> None:
    text = client.get("/docs", headers={"Host": "pictures.example:8080"}).text
    assert "http://pictures.example:8080/upload" in text
    assert "127.0.0.1:5000" not in text
