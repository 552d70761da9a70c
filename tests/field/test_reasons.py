"""Every problem has a `reason`, a fixed word for each kind of mistake; documents, metrics and log have the same."""

import asyncio
import errno
import http.client
import io
import json
import logging
import os
import re
import signal
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

from serve import errors
from serve.api.exchange import Exchange
from serve.api.handlers import Handlers
from serve.config.regular_file import NotRegular
from serve.config.settings import ROOT
from serve.files.runner import classify_file
from serve.imaging.decoder_process import DecoderProcess
from serve.model.classifier import Classifier
from serve.problems import REASONS, RULES
from serve.scheduling.scheduler import Scheduler
from serve.scheduling.upload_budget import UploadBudget
from tests.hostile.pictures import bmp
from tests.serve.conftest import ClientFor
from tests.server_process import ServerProcess, running_server, wait_for
from tests.tiny_model import PATH as TINY_MODEL

Answer = httpx2.Response
IMAGE = {"Content-Type": "image/png"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


def picture(side: int = 300, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, kind, **options)
    return buffer.getvalue()


def animation(frames: int) -> bytes:
    return picture(
        8, "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(1, frames)]
    )


def upload(client: TestClient, data: bytes = b"", **how: Any) -> Answer:
    return client.post("/upload", content=data, headers={**IMAGE, **how.pop("headers", {})}, **how)


def without_length(client: TestClient) -> Answer:
    request = client.build_request("POST", "/upload", content=b"x", headers=IMAGE)
    del request.headers["content-length"]
    return client.send(request)


def preflight(client: TestClient) -> Answer:
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "FETCH"}
    return client.options("/upload", headers=asked)


def files(count: int) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (f"{number}.png", picture())) for number in range(count)]


# What a client sends, by the reason it is refused for, and the settings of the server.
SENT: dict[str, list[tuple[Callable[[TestClient], Answer], dict[str, Any]]]] = {
    "bad_preflight": [(preflight, {"cors_origins": ("https://a.example",)})],
    "bad_parameter": [
        (lambda client: client.post("/upload?top_k=x", content=picture(), headers=IMAGE), {}),
        (lambda client: client.post(f"/upload?{'a' * 2000}", content=picture(), headers=IMAGE), {}),
        (lambda client: upload(client, picture(), headers={"X-Request-Timeout-Ms": "soon"}), {}),
    ],
    "malformed_upload": [
        (lambda client: upload(client, headers={"Content-Type": "multipart/form-data"}), {}),
        (lambda client: upload(client, b"no boundary", headers=FORM), {}),
        (lambda client: upload(client, b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\nx", headers=FORM), {}),
    ],
    "missing_file": [(lambda client: upload(client, b"--b--\r\n", headers=FORM), {})],
    "empty_file": [
        (upload, {}),
        (lambda client: client.post("/upload", files={"file": ("empty.png", b"")}), {}),
    ],
    "unauthorised": [
        (lambda client: upload(client, picture()), {"api_keys_file": "keys"}),
        (lambda client: upload(client, picture(), headers={"X-API-Key": "wrong"}), {"api_keys_file": "keys"}),
    ],
    "foreign_origin": [
        (lambda client: upload(client, picture(), headers={"Origin": "https://evil.example"}), {}),
        (lambda client: client.get("/", headers={"Origin": "null"}), {}),
    ],
    "foreign_host": [(lambda client: client.get("/model"), {"allowed_hosts": ("example.org",)})],
    "unknown_route": [
        (lambda client: client.get("/nothing"), {}),
        (lambda client: client.post("/upload/", content=picture()), {}),
        (lambda client: client.get("/upload%0A"), {}),
    ],
    "method_not_allowed": [
        (lambda client: client.get("/upload"), {}),
        (lambda client: client.delete("/"), {}),
    ],
    "unbounded_body": [(without_length, {})],
    "upload_too_large": [(lambda client: upload(client, picture()), {"max_request_bytes": 100})],
    "too_many_files": [(lambda client: client.post("/upload", files=files(3)), {"max_files": 2})],
    "too_many_pixels": [(lambda client: upload(client, picture()), {"max_pixels": 1000})],
    "too_many_frames": [(lambda client: upload(client, animation(3)), {"max_frames": 2})],
    "too_complex": [(lambda client: upload(client, picture(4000, "PNG")), {"decoder_memory_mb": 16})],
    "unsupported_body": [
        (lambda client: upload(client, b"{}", headers={"Content-Type": "application/json"}), {}),
    ],
    "unsupported_format": [
        (lambda client: upload(client, b"# densenet-server"), {}),
        (lambda client: client.post("/upload", files={"file": ("a.txt", b"text")}), {}),
    ],
    "undecodable_image": [(lambda client: upload(client, picture()[:-40]), {})],
    "decode_timeout": [
        (lambda client: upload(client, bmp(7000, 7000, 8, 1, b"\1\0" * 4_000_000)), {"max_decode_ms": 20}),
    ],
}  # fmt: skip


def refused(answer: Answer, reason: str) -> dict[str, Any]:
    """Checks that an answer is a problem with this reason, and returns it."""
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert (problem["reason"], problem["status"]) == (reason, status_of(reason)), problem
    assert answer.status_code == problem["status"]
    assert {"type", "title", "detail"} <= problem.keys()
    return problem


def status_of(reason: str) -> int:
    return next(RULES[error].status for error, word in REASONS.items() if word == reason)


def counted(client: TestClient, reason: str) -> float:
    text = client.get("/metrics", headers={"Host": "example.org"}).text
    return float(re.findall(rf'^serve_rejected_total{{reason="{reason}"}} (.*)$', text, re.MULTILINE)[0])


@pytest.mark.parametrize(
    ("reason", "send", "settings"), [(reason, *case) for reason, cases in SENT.items() for case in cases]
)
def test_a_refusal_has_its_reason_in_the_problem_the_metrics_and_the_log(
    reason: str,
    send: Callable[[TestClient], Answer],
    settings: dict[str, Any],
    client_for: ClientFor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "keys").write_text("key\n")
    if "api_keys_file" in settings:
        settings = {"api_keys_file": tmp_path / "keys"}
    client = client_for(**settings)
    with caplog.at_level(logging.INFO, "serve.access"):
        refused(send(client), reason)
    logged = [record.fields for record in caplog.records if record.name == "serve.access"]  # type: ignore[attr-defined]
    assert [fields["reason"] for fields in logged] == [reason]
    assert counted(client, reason) == 1


def test_a_request_that_is_not_refused_has_no_reason_in_the_log(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "serve.access"):
        assert upload(client, picture()).status_code == 200
    assert not [record for record in caplog.records if "reason" in getattr(record, "fields", {})]


def test_a_full_queue_has_its_reason(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    require_room = Scheduler.require_room
    monkeypatch.setattr(Scheduler, "require_room", lambda scheduler: require_room(scheduler, 10**6))
    refused(upload(client, picture()), "queue_full")


def test_a_full_upload_budget_has_its_reason(client_for: ClientFor, monkeypatch: pytest.MonkeyPatch) -> None:
    original = UploadBudget.__init__
    monkeypatch.setattr(UploadBudget, "__init__", lambda budget, _, seconds: original(budget, 10, seconds))
    refused(upload(client_for(), picture()), "uploads_full")


def test_a_slow_body_has_its_reason(client_for: ClientFor, monkeypatch: pytest.MonkeyPatch) -> None:
    next_chunk = Exchange.next_chunk

    async def late(exchange: Exchange) -> bytes:
        await asyncio.sleep(1)
        return await next_chunk(exchange)

    monkeypatch.setattr(Exchange, "next_chunk", late)
    refused(upload(client_for(body_timeout_ms=1), picture()), "upload_too_slow")


def test_a_passed_deadline_has_its_reason(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Classifier.prepare
    monkeypatch.setattr(Classifier, "prepare", lambda each, job: time.sleep(0.2) or prepare(each, job))
    refused(upload(client, picture(), headers={"X-Request-Timeout-Ms": "20"}), "deadline_passed")


def test_a_server_that_is_shutting_down_has_its_reason(client: TestClient) -> None:
    cast(Any, client).app.lifecycle.begin_drain()
    refused(upload(client, picture()), "not_ready")
    refused(client.get("/readyz"), "not_ready")


def test_a_dead_decoder_has_its_reason(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, finish = DecoderProcess.begin, DecoderProcess.finish

    def stop_and_begin(decoder: DecoderProcess, *arguments: Any) -> None:
        decoder.wait_ready()
        os.kill(decoder.pid, signal.SIGSTOP)  # or it may have answered when it is killed
        begin(decoder, *arguments)

    def die(decoder: DecoderProcess, *arguments: Any) -> Any:
        os.kill(decoder.pid, signal.SIGKILL)
        return finish(decoder, *arguments)

    monkeypatch.setattr(DecoderProcess, "begin", stop_and_begin)
    monkeypatch.setattr(DecoderProcess, "finish", die)
    refused(upload(client, picture()), "decoder_died")


def test_a_defect_has_its_reason(client_for: ClientFor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Classifier, "compute", fail)
    client = client_for()
    problem = refused(upload(client, picture()), "internal_error")
    assert problem["request_id"]
    assert counted(client, "internal_error") == 1


@pytest.mark.parametrize("error", [error for error in RULES if error is not errors.InternalError])
def test_every_error_is_answered_with_its_own_reason(
    error: type[errors.RequestError], client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error("Why.")

    monkeypatch.setattr(Handlers, "_classify", fail)
    refused(upload(client, picture()), REASONS[error])
    assert counted(client, REASONS[error]) == 1


def test_reasons_are_fixed_words_of_their_own() -> None:
    assert len(set(REASONS.values())) == len(RULES)
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", reason) for reason in REASONS.values())


def test_every_file_that_fails_in_a_list_has_its_reason(client_for: ClientFor) -> None:
    client = client_for(max_pixels=100_000, max_frames=2)
    sent = {
        "good.png": picture(),
        "notes.txt": b"text",
        "empty.png": b"",
        "half.png": picture()[:-40],
        "large.png": picture(400),
        "long.gif": animation(3),
        "good again.png": picture(),
    }
    answer = client.post("/upload", files=[("file", (name, data)) for name, data in sent.items()])
    assert answer.status_code == 200
    results = {result["filename"]: result for result in answer.json()["results"]}
    reasons = {name: result.get("reason") for name, result in results.items()}
    assert reasons == {
        "good.png": None,
        "notes.txt": "unsupported_format",
        "empty.png": "empty_file",
        "half.png": "undecodable_image",
        "large.png": "too_many_pixels",
        "long.gif": "too_many_frames",
        "good again.png": None,
    }
    assert all(results[name]["status"] == status_of(reason) for name, reason in reasons.items() if reason)
    assert counted(client, "unsupported_format") == 0  # the request was not refused


def test_errors_of_the_inference_protocol_keep_its_form_and_are_counted_by_reason(client: TestClient) -> None:
    sent: dict[str, Answer] = {
        "unknown_route": client.get("/v2/nothing"),
        "unknown_model": client.get("/v2/models/other"),
        "method_not_allowed": client.get("/v2/models/tiny/infer"),
        "bad_tensor": client.post("/v2/models/tiny/infer", content=b"{"),
        "unsupported_body": client.post("/v2/models/tiny/infer", content=b"x", headers={"Content-Encoding": "gzip"}),
    }
    for reason, answer in sent.items():
        assert (answer.status_code, list(answer.json())) == (status_of(reason), ["error"])
        assert counted(client, reason) == 1


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    flags = ("--model", str(TINY_MODEL), "--log-format", "json", "--head-timeout-ms", "300", "--max-connections", "1")
    with running_server(sys.executable, *flags, "--max-decode-ms", "5000") as process:
        yield process


HEAD = b"POST /upload HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("malformed_request", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),  # TLS
        ("malformed_request", b"GET / HTTP/1.1\r\nno header\r\n\r\n"),
        ("malformed_request", b"GET / HTTP/1.1\r\n\r\n"),
        ("malformed_request", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
        ("malformed_request", HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("malformed_request", HEAD + b"Transfer-Encoding: gzip\r\n\r\n"),
        ("malformed_request", HEAD + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n"),
        ("malformed_request", HEAD + b"Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        ("head_too_slow", b"GET / HTTP/1.1\r\n"),
        ("target_too_long", b"GET /?" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n"),
        ("head_too_large", b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 70_000 + b"\r\n\r\n"),
        ("head_too_large", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n"),
    ],
)
def test_what_never_becomes_a_request_has_its_reason(server: ServerProcess, reason: str, sent: bytes) -> None:
    before = counted_by(server, reason)
    lines = len(server.lines)
    status, problem = ask(server, sent)
    assert (status, problem["status"], problem["reason"]) == (status_of(reason), status_of(reason), reason)
    wait_for(lambda: [line["reason"] for line in server.log[lines:] if "reason" in line] == [reason])
    assert counted_by(server, reason) == before + 1


def test_a_connection_too_many_has_its_reason(server: ServerProcess) -> None:
    slow = bmp(7000, 7000, 8, 1, b"\1\0" * 4_000_000)
    with socket.create_connection(address(server)) as busy:
        busy.sendall(HEAD + b"Content-Type: image/bmp\r\nContent-Length: %d\r\n\r\n" % len(slow) + slow)
        time.sleep(1)
        status, problem = ask(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert busy.recv(100).startswith(b"HTTP/1.1 ")
    assert (status, problem["reason"]) == (503, "too_many_connections")


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (413, HEAD + b"Content-Type: image/png\r\nContent-Length: 999999999\r\n\r\n"),
        (422, HEAD + b"Content-Type: image/gif\r\nContent-Length: 8\r\n\r\nGIF89a\0\0"),
    ],
)
def test_the_status_line_has_the_title_of_the_problem(server: ServerProcess, status: int, sent: bytes) -> None:
    """Before Python 3.13, `http` has the phrases of RFC 7231 for these."""
    with socket.create_connection(address(server), timeout=10) as connection:
        connection.sendall(sent)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.reason) == (status, json.loads(answer.read())["title"])


def address(server: ServerProcess) -> tuple[str, int]:
    return "127.0.0.1", int(server.url.rpartition(":")[2])


def ask(server: ServerProcess, sent: bytes) -> tuple[int, dict[str, Any]]:
    with socket.create_connection(address(server), timeout=10) as connection:
        connection.sendall(sent)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, json.loads(answer.read())


def counted_by(server: ServerProcess, reason: str) -> float:
    text = httpx2.get(f"{server.url}/metrics").text
    return float(re.findall(rf'^serve_rejected_total{{reason="{reason}"}} (.*)$', text, re.MULTILINE)[0])


def test_one_table_of_the_http_documentation_has_every_reason_with_its_status() -> None:
    told = table(ROOT / "docs" / "api.md")
    assert told == sorted(told, key=lambda row: row[1])
    assert sorted(told) == sorted((REASONS[error], str(rule.status)) for error, rule in RULES.items())
    others = [path for path in (ROOT / "docs").glob("*.md") if set(told) & set(table(path))]
    assert others == [ROOT / "docs" / "api.md"]


def table(path: Path) -> list[tuple[str, str]]:
    text = path.read_text(encoding="utf-8")
    return re.findall(r"^\| `(\w+)` \| (\d{3}(?:, \d{3})*) \|", text, re.MULTILINE)


def test_openapi_lists_every_reason_and_requires_one_in_every_problem(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["Reason"]["enum"] == list(REASONS.values())
    problems = [schema for schema in schemas.values() if "detail" in schema.get("properties", {})]
    assert len(problems) == 2
    for schema in problems:
        assert "reason" in schema["required"]
        assert schema["properties"]["reason"] == {"$ref": "#/components/schemas/Reason"}


def test_the_metric_has_a_series_for_every_reason_from_the_start(client: TestClient) -> None:
    text = client.get("/metrics").text
    found = re.findall(r'^serve_rejected_total{reason="(\w+)"} 0.0$', text, re.MULTILINE)
    assert sorted(found) == sorted(REASONS.values())


FILES = {
    FileNotFoundError(): ("no_such_file", 404),
    NotADirectoryError(): ("no_such_file", 404),
    PermissionError(): ("unreadable", 403),
    IsADirectoryError(): ("not_a_file", 415),
    OSError(errno.EIO, "Input/output error"): ("unreadable", 404),
    NotRegular(errno.EINVAL, "not a regular file"): ("not_a_file", 415),
}


@pytest.mark.parametrize(("error", "expected"), FILES.items(), ids=lambda value: repr(value))
def test_the_record_of_a_file_that_cannot_be_read_has_its_reason(
    classifier: Classifier, error: OSError, expected: tuple[str, int]
) -> None:
    def read(*_: object) -> bytes:
        raise error

    record = classify_file(classifier, "a.jpg", 1, 100, read)
    assert (record["reason"], record["status"]) == expected


def test_the_record_of_a_file_that_is_refused_has_the_reason_of_http(classifier: Classifier, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty.png").write_bytes(b"")
    reasons = [classify_file(classifier, str(path), 1, 100)["reason"] for path in sorted(tmp_path.iterdir())]
    assert reasons == ["unsupported_format", "empty_file"]


def test_a_defect_in_a_record_has_its_reason(classifier: Classifier) -> None:
    def read(*_: object) -> bytes:
        raise ZeroDivisionError

    assert classify_file(classifier, "a.jpg", 1, 100, read)["reason"] == "internal_error"


def test_the_document_of_the_command_has_the_reasons_of_files() -> None:
    told = {
        (reason, int(each)) for reason, status in table(ROOT / "docs" / "folders.md") for each in status.split(", ")
    }
    assert told == set(FILES.values())
