"""Tests that response bodies match their schemas in the OpenAPI document, by jsonschema."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
import requests
from jsonschema import Draft202012Validator

from tests.clients.conftest import TABLE
from tests.server_process import ServerProcess


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> dict[str, Any]:
    answer: dict[str, Any] = requests.get(f"{server.url}/openapi.json", timeout=10).json()
    return answer


def validate(document: dict[str, Any], path: str, method: str, answer: requests.Response) -> None:
    """Raise unless the document has a schema for this response and its JSON matches."""
    media_type = answer.headers["Content-Type"].split(";")[0]
    content = document["paths"][path][method]["responses"][str(answer.status_code)]["content"]
    schema = {**content[media_type]["schema"], "components": document["components"]}
    Draft202012Validator(schema).validate(answer.json())


def infer(server: ServerProcess, name: str, body: dict[str, Any]) -> requests.Response:
    return requests.post(f"{server.url}/v2/models/{name}/infer", json=body, timeout=30)


def image(data: bytes) -> dict[str, Any]:
    return {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(data).decode()]}


def test_every_kind_of_body_matches_its_schema(
    server: ServerProcess, document: dict[str, Any], photos: dict[str, bytes]
) -> None:
    cat = photos["cat"]
    name = requests.get(f"{server.url}/model", timeout=10).json()["name"]
    upload = f"{server.url}/upload"
    several = [("file", ("a.jpg", cat)), ("file", ("b.txt", b"text")), ("file", ("c.jpg", cat))]
    classify = {"outputs": [{"name": "logits", "parameters": {"classification": 3}}]}
    answers = [
        ("/upload", "post", requests.post(upload, files={"file": cat}, timeout=30)),
        ("/upload", "post", requests.post(upload, files=several, timeout=30)),
        ("/upload", "post", requests.post(upload, data=cat, headers={"Content-Type": "image/jpeg"}, timeout=30)),
        (
            "/upload",
            "post",
            requests.post(upload, data=cat, headers={"Content-Type": "application/octet-stream"}, timeout=30),
        ),
        ("/upload", "post", requests.post(f"{upload}?threshold=1", files={"image": cat}, timeout=30)),
        ("/upload", "post", requests.post(f"{upload}?list=true", data=cat, timeout=30)),
        ("/upload", "post", requests.post(f"{upload}?topk=3", files={"file": cat}, timeout=30)),
        ("/upload", "post", requests.post(upload, data=cat, headers={"Content-Encoding": "gzip"}, timeout=30)),
        ("/upload", "post", requests.post(upload, files={"file": cat[:5000]}, timeout=30)),
        ("/v2/models/{name}/infer", "post", infer(server, name, {"inputs": [image(cat)], "id": "one"})),
        ("/v2/models/{name}/infer", "post", infer(server, name, {"inputs": [image(cat)], **classify})),
        ("/v2/models/{name}/infer", "post", infer(server, name, {"inputs": []})),
        ("/v2/models/{name}/infer", "post", infer(server, "other", {"inputs": []})),
    ]
    paths = ["/model", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready"]
    paths += ["/v2/models/{name}", "/v2/models/{name}/ready"]
    answers += [(path, "get", requests.get(server.url + path.replace("{name}", name), timeout=10)) for path in paths]
    statuses = [answer.status_code for _, _, answer in answers]
    assert statuses == [200] * 6 + [400, 415, 422, 200, 200, 400, 404] + [200] * 7
    for path, method, answer in answers:
        validate(document, path, method, answer)
    TABLE.append(("jsonschema", f"{len(answers)} bodies match their schemas in /openapi.json"))


@pytest.mark.parametrize("break_", [lambda body: body.pop("model"), lambda body: body.update(probability=2)])
def test_a_body_that_violates_its_schema_is_found(
    server: ServerProcess, document: dict[str, Any], photos: dict[str, bytes], break_: Callable[[Any], Any]
) -> None:
    answer = requests.post(f"{server.url}/upload", files={"file": photos["cat"]}, timeout=30)
    body = answer.json()
    break_(body)
    answer._content = json.dumps(body).encode()
    with pytest.raises(Exception, match="is not valid under any of the given schemas"):
        validate(document, "/upload", "post", answer)
