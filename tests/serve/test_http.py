"""HTTP on the wire: versions, Expect, Host, trailers, HEAD and half-closed connections."""

import http.client
import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.server_process import ServerProcess, running_server
from tests.tiny_model import PATH as TINY_MODEL

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(sys.executable, "--model", str(TINY_MODEL), "--log-format", "json") as process:
        yield process


def connect(server: ServerProcess) -> socket.socket:
    parts = urlsplit(server.url)
    assert parts.port
    return socket.create_connection((parts.hostname or "", parts.port), timeout=10)


def read(connection: socket.socket, method: str = "GET") -> tuple[int, bytes, http.client.HTTPResponse]:
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    return response.status, response.read(), response


def with_length(picture: bytes, version: bytes = b"1.1") -> bytes:
    return POST.replace(b"HTTP/1.1", b"HTTP/" + version) + b"Content-Length: %d\r\n\r\n" % len(picture) + picture


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_half_closed_client_gets_the_response_to_a_complete_upload(
    server: ServerProcess, cat: bytes, version: bytes
) -> None:
    with connect(server) as raw:
        raw.sendall(with_length(cat, version))
        raw.shutdown(socket.SHUT_WR)
        status, body, _ = read(raw)
        assert (status, json.loads(body)["model"]) == (200, "tiny")
        assert raw.recv(1) == b""  # the server closes, too


def test_a_half_closed_client_gets_the_responses_to_pipelined_requests(server: ServerProcess, cat: bytes) -> None:
    incomplete = POST + b"Content-Length: 1000\r\n\r\nabc"
    for last in (b"", b"GET /liv", incomplete):
        with connect(server) as raw, raw.makefile("rb") as received:
            raw.sendall(with_length(cat) + (GET + b"\r\n") * 3 + last)
            raw.shutdown(socket.SHUT_WR)
            answers = received.read()
        assert answers.count(b"HTTP/1.1 200 OK\r\n") == 4
        assert answers.count(b"ok\n") == 3


@pytest.mark.parametrize("target", [b"/livez", b"/metrics", b"/nothing"])
def test_a_half_closed_client_gets_the_response_to_a_head_request(server: ServerProcess, target: bytes) -> None:
    for _ in range(5):
        with connect(server) as raw, raw.makefile("rb") as received:
            raw.sendall(GET.replace(b"GET /livez", b"HEAD " + target) + b"\r\n")
            raw.shutdown(socket.SHUT_WR)
            assert received.read().startswith(b"HTTP/1.1 404" if target == b"/nothing" else b"HTTP/1.1 200")


def test_a_half_closed_client_gets_the_responses_before_a_malformed_request(server: ServerProcess, cat: bytes) -> None:
    for sent, answers in ((with_length(cat) + b"\0garbage", 1), ((GET + b"\r\n") * 12, 9)):
        with connect(server) as raw, raw.makefile("rb") as received:
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            assert received.read().count(b"HTTP/1.1 200 OK\r\n") == answers


def test_a_half_closed_client_that_reads_nothing_is_disconnected() -> None:
    """The unsent data is too little for the transport to pause writing."""
    flags = ("--model", str(TINY_MODEL), "--log-format", "json", "--body-timeout-ms", "500")
    with running_server(sys.executable, *flags) as hasty, ExitStack() as stack:
        before = descriptors(hasty)
        crowd = [stack.enter_context(connect(hasty)) for _ in range(40)]
        for number, raw in enumerate(crowd):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.setblocking(False)
            for _ in range(5 + number):
                with suppress(BlockingIOError):
                    raw.send(GET.replace(b"/livez", b"/docs") + b"\r\n")
                time.sleep(0.002)
        for raw in crowd:
            with suppress(OSError):
                raw.shutdown(socket.SHUT_WR)
        give_up = time.monotonic() + 20
        while descriptors(hasty) > before:
            assert time.monotonic() < give_up
            time.sleep(0.05)


def descriptors(server: ServerProcess) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def test_a_half_closed_client_with_an_incomplete_upload_is_disconnected(server: ServerProcess) -> None:
    with connect(server) as raw:
        raw.sendall(POST + b"Content-Length: 1000\r\n\r\nabc")
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(4096) == b""


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"GET /livez " + protocol
            for protocol in b"HTTP/2.0 HTTP/0.9 HTTP/3.0 RTSP/1.0 RTSP/1.1 RTSP/2.0 ICE/1.0 ICE/1.1".split()
        ),
        b"POST / RTSP/1.0",
        b"DESCRIBE /livez RTSP/1.0",
        b"SOURCE /livez ICE/1.0",
        b"GET /livez",
    ],
)
@pytest.mark.parametrize("more", [b"", *(b"X-Line: GET /livez HTTP/1.%d\r\n" % minor for minor in (0, 1))])
def test_other_protocols_and_versions_are_refused(server: ServerProcess, line: bytes, more: bytes) -> None:
    with connect(server) as raw:
        raw.sendall(line + b"\r\nHost: localhost\r\n" + more + b"\r\n")
        raw.shutdown(socket.SHUT_WR)
        status, body, answer = read(raw)
    assert status == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(body)["status"] == 400


@pytest.mark.parametrize("pieces", [1, 7])
def test_http_1_0_is_answered_even_if_its_head_arrives_in_pieces(server: ServerProcess, pieces: int) -> None:
    sent = b"\r\nGET /livez HTTP/1.0\r\nA: b\r\n\r\n"
    with connect(server) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), len(sent) // pieces):
            raw.sendall(sent[start : start + len(sent) // pieces])
        assert read(raw)[:2] == (200, b"ok\n")


@pytest.mark.parametrize(("version", "told"), [(b"1.1", True), (b"1.0", False)])
def test_only_http_1_1_gets_100_continue(server: ServerProcess, cat: bytes, version: bytes, told: bool) -> None:
    head, picture = with_length(cat, version).split(b"\r\n\r\n", 1)
    with connect(server) as raw, raw.makefile("rb") as received:
        raw.sendall(head + b"\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
        if told:
            assert received.readline() == b"HTTP/1.1 100 Continue\r\n"
        raw.sendall(picture)
        rest = received.read()
    assert b"HTTP/1.1 200 OK\r\n" in rest
    assert b"100" not in rest.split(b"\r\n")[0]


@pytest.mark.parametrize(
    "host",
    [
        b"a b",
        b"a,b",
        b"user@localhost",
        b"http://localhost",
        b"localhost/",
        b"a:b",
        b"[::1",
        b"::1",
        b"\xe9",
        b"a" * 300,
        b"a%20",
    ],
)
def test_a_malformed_host_is_refused(server: ServerProcess, host: bytes) -> None:
    with connect(server) as raw:
        raw.sendall(GET.replace(b"localhost", host) + b"\r\n")
        status, body, _ = read(raw)
    assert (status, json.loads(body)["detail"].startswith("The Host header is malformed")) == (400, True)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://localhost/livez", 200),
        (b"HTTP://LocalHost/livez", 200),
        (b"http://elsewhere/livez", 400),
        (b"http://localhost:81/livez", 400),
        (b"http://user@localhost/livez", 400),
        (b"http://elsewhere?/localhost", 400),
    ],
)
def test_a_target_has_to_name_the_same_host_as_the_host_header(
    server: ServerProcess, target: bytes, status: int
) -> None:
    with connect(server) as raw:
        raw.sendall(GET.replace(b"/livez", target, 1) + b"\r\n")
        assert read(raw)[0] == status


def test_a_trailer_with_connection_close_closes_the_connection(server: ServerProcess) -> None:
    """The parser stops after it, so the client has to know that its next request is lost."""
    with connect(server) as raw, raw.makefile("rb") as received:
        raw.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nConnection: close\r\n\r\n")
        raw.settimeout(5)
        assert received.read().startswith(b"HTTP/1.1 415 ")  # reads until the server closes


@pytest.mark.parametrize(
    "more", [b"Host: other\r\n", b"A: b\r\n" * 200, b"A: " + b"b" * 70_000 + b"\r\n", b"A\x00: b\r\n"]
)
def test_the_refusal_of_a_head_request_has_no_body(server: ServerProcess, more: bytes) -> None:
    with connect(server) as raw, raw.makefile("rb") as received:
        raw.sendall(GET.replace(b"GET", b"HEAD") + more + b"\r\n")
        raw.shutdown(socket.SHUT_WR)
        answer = received.read()
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"Content-Length: " in answer
    assert answer.endswith(b"\r\n\r\n")


def test_what_little_is_left_of_a_refused_body_is_dropped_and_the_connection_goes_on(server: ServerProcess) -> None:
    with connect(server) as connection:
        for _ in range(3):
            connection.sendall(
                b"POST /upload?top_k=none HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
                b"Content-Length: 200000\r\n\r\n" + bytes(1000)
            )
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert (answer.status, answer.getheader("connection")) == (400, None)
            answer.read()
            answer.close()
            connection.sendall(bytes(199_000))
        connection.sendall(GET + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "more", [b"Content-Length: 400000\r\n\r\nx", b"Transfer-Encoding: chunked\r\n\r\n", b"Content-Length: 9\r\n"
             b"Expect: 100-continue\r\n\r\n"]
)  # fmt: skip
def test_a_connection_is_closed_if_more_is_left_or_it_is_not_known_how_much(server: ServerProcess, more: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(
            b"POST /upload?top_k=none HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n" + more
        )
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.getheader("connection")) == (400, "close")
        answer.read()
        answer.close()
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
