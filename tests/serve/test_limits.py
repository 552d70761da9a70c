"""Tests each limit at its edge: exactly the limit is accepted, and one more is refused."""

import json
import socket
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from serve.api.v2 import messages
from serve.api.v2.messages import MAX_JSON_BYTES, MAX_JSON_ROWS, Signature, parse_request
from serve.config.settings import load_config
from serve.errors import BadTensor, ConfigError, TooManyFiles, UploadTooLarge
from serve.model.labels import Label
from tests.serve.conftest import ClientFor
from tests.server_process import ServerProcess, running_server
from tests.tiny_model import PATH as TINY_MODEL

JPEG = {"Content-Type": "image/jpeg"}
SIGNATURE = Signature("tiny", 2, (Label("n0", "a"), Label("n1", "b")), 4)


def chunked(body: bytes) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    yield body[len(body) // 2 :]


@pytest.mark.parametrize("send", [bytes, chunked], ids=["with a length", "chunked"])
@pytest.mark.parametrize(("more", "status"), [(0, 200), (-1, 413)])
def test_a_body_may_have_as_many_bytes_as_the_setting_and_no_more(
    client_for: ClientFor, cat: bytes, send: Any, more: int, status: int
) -> None:
    client = client_for(max_request_bytes=len(cat) + more)
    assert client.post("/upload", content=send(cat), headers=JPEG).status_code == status


@pytest.mark.parametrize("send", [bytes, chunked], ids=["with a length", "chunked"])
@pytest.mark.parametrize(("more", "status"), [(0, 200), (-1, 413)])
def test_an_inference_body_has_the_same_limit(
    client_for: ClientFor, cat: bytes, send: Any, more: int, status: int
) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(cat) + 4}}
    head = json.dumps({"inputs": [tensor]}).encode()
    body = head + len(cat).to_bytes(4, "little") + cat
    client = client_for(max_request_bytes=len(body) + more)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    assert client.post("/v2/models/tiny/infer", content=send(body), headers=headers).status_code == status


def test_a_request_may_be_as_large_as_all_uploads_together_and_no_larger() -> None:
    both = ["--max-upload-bytes", "1000", "--max-request-bytes"]
    assert load_config([*both, "1000"], {}).max_request_bytes == 1000
    with pytest.raises(ConfigError, match="max_request_bytes=1001 is more than max_upload_bytes=1000"):
        load_config([*both, "1001"], {})


def test_a_request_may_have_as_many_files_as_may_wait_and_no_more() -> None:
    both = ["--max-queue", "5", "--max-files"]
    assert load_config([*both, "5"], {}).max_files == 5
    with pytest.raises(ConfigError, match="max_files=6 is more than max_queue=5"):
        load_config([*both, "6"], {})


@pytest.mark.parametrize(("files", "others", "status"), [(3, 32, 200), (4, 0, 413), (3, 33, 413)])
def test_files_and_other_parts_have_limits(
    client_for: ClientFor, cat: bytes, files: int, others: int, status: int
) -> None:
    parts = [("file", ("a.jpg", cat))] * files + [("note", (None, b"text"))] * others
    assert client_for(max_files=3).post("/upload", files=parts).status_code == status


@pytest.mark.parametrize(("length", "status"), [(256, 200), (257, 400)])
def test_a_boundary_may_have_256_bytes(client: TestClient, cat: bytes, length: int, status: int) -> None:
    boundary = b"b" * length
    line = b'Content-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
    body = b"--" + boundary + b"\r\n" + line + cat + b"\r\n--" + boundary + b"--\r\n"
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}
    assert client.post("/upload", content=body, headers=headers).status_code == status


@pytest.mark.parametrize(("count", "status"), [(8, 200), (9, 400)])
def test_a_part_may_have_eight_headers(client: TestClient, cat: bytes, count: int, status: int) -> None:
    lines = [b'Content-Disposition: form-data; name="file"; filename="a.jpg"', *[b"X-More: y"] * (count - 1)]
    body = b"--b\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + cat + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert client.post("/upload", content=body, headers=headers).status_code == status


@pytest.mark.parametrize(("top_k", "status"), [(1, 200), (1000, 200), (0, 400), (1001, 400)])
def test_top_k_goes_from_one_to_all_classes(client: TestClient, cat: bytes, top_k: int, status: int) -> None:
    assert client.post(f"/upload?top_k={top_k}", content=cat, headers=JPEG).status_code == status


def row_count(count: int) -> bytes:
    tensor = {"name": "input", "datatype": "FP32", "shape": [count, 3, 2, 2], "data": [0.5] * (count * 12)}
    return json.dumps({"inputs": [tensor]}).encode()


def test_a_tensor_may_have_as_many_rows_as_a_request_may_have_files() -> None:
    assert len(parse_request(None, row_count(4), SIGNATURE).rows) == 4
    with pytest.raises(TooManyFiles, match="the limit is 4 rows per request"):
        parse_request(None, row_count(5), SIGNATURE)


def classes(count: int) -> bytes:
    message = json.loads(row_count(1))
    message["outputs"] = [{"name": "logits", "parameters": {"classification": count}}]
    return json.dumps(message).encode()


def test_the_classification_extension_names_all_classes_at_most() -> None:
    assert parse_request(None, classes(2), SIGNATURE).outputs[0].classes == 2
    with pytest.raises(BadTensor, match="classification=3 is not a whole number from 1 to 2"):
        parse_request(None, classes(3), SIGNATURE)


def padded(length: int) -> bytes:
    """Return a valid request padded with blanks before its closing brace."""
    message = row_count(1)
    return message[:-1] + b" " * (length - len(message)) + b"}"


def test_json_may_have_as_many_bytes_as_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_JSON_BYTES == 8 * 2**20
    monkeypatch.setattr(messages, "MAX_JSON_BYTES", 2000)
    assert parse_request(None, padded(2000), SIGNATURE).rows
    with pytest.raises(UploadTooLarge, match="2001 bytes of JSON; the limit is 2000"):
        parse_request(None, padded(2001), SIGNATURE)


def with_parameters(text: str) -> bytes:
    """Return a valid request with this JSON as an additional value that is ignored."""
    return row_count(1)[:-1] + b', "parameters": {"unread": ' + text.encode() + b"}}"


def lists_of(count: int) -> str:
    """Return JSON with so many lists, nested about a hundred deep."""
    depths = [100] * ((count - 1) // 100) + [(count - 1) % 100]
    return "[" + ",".join("[" * depth + "]" * depth for depth in depths if depth) + "]"


def test_json_may_have_as_many_lists_and_values_as_the_limits() -> None:
    lists = MAX_JSON_ROWS * (1 + 3 + 3 * 2) + 1000
    values = MAX_JSON_ROWS * 3 * 2**2 + 1000
    have = with_parameters("0").count(b"[") + with_parameters("0").count(b"{")
    assert parse_request(None, with_parameters(lists_of(lists - have)), SIGNATURE).rows
    with pytest.raises(BadTensor, match=f"{lists + 1} lists and objects; the limit is {lists}"):
        parse_request(None, with_parameters(lists_of(lists + 1 - have)), SIGNATURE)
    have = with_parameters("[0]").count(b",")
    assert parse_request(None, with_parameters(f"[{'0,' * (values - have)}0]"), SIGNATURE).rows
    with pytest.raises(UploadTooLarge, match=f"more than {values} values in JSON"):
        parse_request(None, with_parameters(f"[{'0,' * (values + 1 - have)}0]"), SIGNATURE)


def named(length: int) -> bytes:
    return json.dumps({**json.loads(row_count(1)), "id": "x" * length}).encode()


def test_a_requests_id_may_have_1024_characters() -> None:
    assert parse_request(None, named(1024), SIGNATURE).id == "x" * 1024
    with pytest.raises(BadTensor, match="at most 1024 characters"):
        parse_request(None, named(1025), SIGNATURE)


@pytest.mark.parametrize("text", ["AAA=!", "A A=", "AAAA\n", "AA-_", "AAA", "é"])
def test_base64_with_other_characters_is_refused(text: str) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    with pytest.raises(BadTensor, match="is not base64"):
        parse_request(None, json.dumps({"inputs": [tensor]}).encode(), SIGNATURE)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(sys.executable, "--model", str(TINY_MODEL), "--log-format", "json") as process:
        yield process


def status(server: ServerProcess, sent: bytes) -> int:
    parts = urlsplit(server.url)
    assert parts.port
    with socket.create_connection((parts.hostname or "", parts.port), timeout=10) as raw:
        raw.sendall(sent)
        return int(raw.recv(100).split()[1])


def head_of(length: int) -> bytes:
    """Return a request whose target and headers count as so many bytes."""
    target, host = b"/livez", b"Host: localhost\r\n"
    line = b"A: " + b"b" * (length - len(target) - len(host) - len(b"A: \r\n")) + b"\r\n"
    return b"GET " + target + b" HTTP/1.1\r\n" + host + line + b"\r\n"


@pytest.mark.parametrize(("length", "expected"), [(64 * 1024, 200), (64 * 1024 + 1, 431)])
def test_a_head_may_have_64_kibibytes(server: ServerProcess, length: int, expected: int) -> None:
    assert status(server, head_of(length)) == expected


@pytest.mark.parametrize(("length", "expected"), [(16 * 1024, 404), (16 * 1024 + 1, 414)])
def test_a_target_may_have_16_kibibytes(server: ServerProcess, length: int, expected: int) -> None:
    target = b"/" + b"a" * (length - 1)
    assert status(server, b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n") == expected


@pytest.mark.parametrize(("count", "expected"), [(128, 200), (129, 431)])
def test_a_head_may_have_128_lines(server: ServerProcess, count: int, expected: int) -> None:
    lines = b"Host: localhost\r\n" + b"A: b\r\n" * (count - 1)
    assert status(server, b"GET /livez HTTP/1.1\r\n" + lines + b"\r\n") == expected


@pytest.mark.parametrize(("length", "expected"), [(1024, 200), (1025, 400)])
def test_a_query_may_have_1024_bytes(client: TestClient, cat: bytes, length: int, expected: int) -> None:
    query = "top_k=" + "1".zfill(length - 6)
    assert client.post(f"/upload?{query}", content=cat, headers=JPEG).status_code == expected


@pytest.mark.parametrize(("count", "words"), [(32, "top_k='5,5,5"), (33, "more parameters than the limit of 32")])
def test_a_query_may_have_32_parameters(client: TestClient, cat: bytes, count: int, words: str) -> None:
    query = "&".join(["top_k=5"] * count)
    answer = client.post(f"/upload?{query}", content=cat, headers=JPEG)
    assert answer.status_code == 400
    assert words in answer.json()["detail"]
