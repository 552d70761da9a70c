"""Probes of the real process while it parses the slowest bodies."""

import socket
import sys
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.hostile.bodies import LONG_BOUNDARY, form_of, in_chunks, numbers
from tests.hostile.prober import probing, quantile
from tests.hostile.requests import head, post
from tests.server_process import ServerProcess, running_server
from tests.tiny_model import PATH as TINY_MODEL

# Limit on a probe's latency. A byte-by-byte parser without a read budget takes 1.5 to 11 s.
SECONDS = 0.5
FORMS, MESSAGES = 32, 10  # uploads in parallel


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(sys.executable, "--model", str(TINY_MODEL), "--log-format", "json") as process:
        yield process


def form(boundary: bytes, unit: bytes, ahead: bytes = b"") -> bytes:
    header = b"Content-Type: multipart/form-data; boundary=" + boundary + b"\r\n"
    return post(form_of(boundary, ahead + unit * (1_900_000 // len(unit))), header)


def chunks() -> bytes:
    more = b"Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n"
    return head(more=more) + in_chunks(form_of(b"b", bytes(200_000)), 1)


def json_of(body: bytes) -> bytes:
    return post(body, b"Content-Type: application/json\r\n", b"/v2/models/tiny/infer")


def status_of(server: ServerProcess, request: bytes) -> int:
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall(request)
        return int(connection.recv(65536).split()[1])


@pytest.mark.parametrize(
    ("count", "request_"),
    [
        (FORMS, form(b"b", b"\r\n--b\0")),
        (FORMS, form(b"b", b"\r\n--b\r")),
        (FORMS, form(b"b", b"\r\n--b-")),
        (FORMS, form(b"b", b" ", b"\r\n--b")),
        (FORMS, form(LONG_BOUNDARY, b"\r\n--" + LONG_BOUNDARY[:-1])),
        (FORMS, chunks()),
        (MESSAGES, json_of(numbers(b"2.2250738585072011360574097967091319759348e-308"))),
        (MESSAGES, json_of(b'{"id":"' + b"\xed\xa0\x80" * 2_600_000 + b'"}')),
    ],
    ids=["NUL", "CR", "dash", "blanks", "longest", "one-byte chunks", "numbers", "surrogates"],
)
def test_probes_are_answered_whatever_is_being_uploaded(server: ServerProcess, count: int, request_: bytes) -> None:
    parts = urlsplit(server.url)
    statuses: list[int] = []
    senders = [threading.Thread(target=lambda: statuses.append(status_of(server, request_))) for _ in range(count)]
    with probing(parts.hostname or "", parts.port or 0) as latencies:
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(60)
    assert len(statuses) == count
    assert set(statuses) <= {400, 415, 429, 504}
    assert quantile(latencies, 0.9) < SECONDS
