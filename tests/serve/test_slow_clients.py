"""Many idle, slow and stalled clients against the real process: they are disconnected, and others are served."""

import http.client
import json
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from serve.config.settings import ROOT
from tests.hostile.client import megabytes
from tests.hostile.pictures import bmp
from tests.server_process import ServerProcess, running_server
from tests.tiny_model import PATH as TINY_MODEL

MOST = 40
FLAGS = ("--model", str(TINY_MODEL), "--log-format", "json", "--max-connections", str(MOST))
FAST = (*FLAGS, "--head-timeout-ms", "400", "--body-timeout-ms", "600", "--keep-alive-seconds", "1")
HEAD = b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def default_limits() -> Iterator[ServerProcess]:
    """A server with the default time limits, which no test here waits for."""
    with running_server(sys.executable, *FLAGS) as server:
        yield server


@pytest.fixture(scope="module")
def short_limits() -> Iterator[ServerProcess]:
    with running_server(sys.executable, *FAST) as server:
        yield server


def connected(server: ServerProcess, stack: ExitStack) -> socket.socket:
    parts = urlsplit(server.url)
    assert parts.port
    return stack.enter_context(socket.create_connection((parts.hostname or "", parts.port), timeout=10))


def answer(connection: socket.socket) -> tuple[int, dict[str, str], dict[str, object]]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    headers = {key.lower(): value for key, value in response.getheaders()}
    return response.status, headers, json.loads(response.read())


def logged(server: ServerProcess, request_id: str) -> list[dict[str, Any]]:
    """The log lines of a request; waits for the first one."""
    give_up = time.monotonic() + 10
    while not (lines := [json.loads(line) for line in server.lines if request_id in line]):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    return lines


def until_closed(connection: socket.socket) -> float:
    """Seconds until the server closes the connection."""
    started = time.monotonic()
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - started


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n", HEAD % 1000, HEAD % 1000 + b"\xff\xd8\xff"],
    ids=["idle", "half a head", "no body", "half a body"],
)
def test_many_idle_or_slow_connections_do_not_lock_out_others(
    default_limits: ServerProcess, cat: bytes, sent: bytes
) -> None:
    with ExitStack() as stack:
        crowd = [connected(default_limits, stack) for _ in range(5 * MOST)]
        for connection in crowd:
            with suppress(OSError):  # it may have been evicted already
                connection.sendall(sent)
        for _ in range(3):
            began = time.monotonic()
            reply = httpx2.post(f"{default_limits.url}/upload", files={"file": ("cat.jpg", cat)}, timeout=10)
            assert reply.status_code == 200
            assert time.monotonic() - began < 2
        assert until_closed(crowd[0]) < 1  # the oldest connection was evicted first


def test_an_idle_connection_after_a_request_is_kept(default_limits: ServerProcess, cat: bytes) -> None:
    """Uses one socket, because a client library would silently reconnect."""
    with ExitStack() as stack:
        connection = connected(default_limits, stack)
        for _ in range(3):
            connection.sendall(HEAD % len(cat) + cat)
            assert answer(connection)[0] == 200
            time.sleep(0.3)


def test_a_missing_head_closes_the_connection(short_limits: ServerProcess) -> None:
    with ExitStack() as stack:
        idle, half = connected(short_limits, stack), connected(short_limits, stack)
        half.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        status, _, problem = answer(half)
        assert status == 408
        assert problem["detail"] == "The request's head was not complete within the limit of 0.4 s."
        assert until_closed(idle) < 1


def test_a_head_that_arrives_byte_by_byte_is_refused(short_limits: ServerProcess) -> None:
    with ExitStack() as stack:
        dripping = connected(short_limits, stack)
        began = time.monotonic()

        def drip() -> None:
            try:
                for byte in b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 100:
                    dripping.sendall(bytes((byte,)))
                    time.sleep(0.05)
            except OSError:
                pass

        dripper = threading.Thread(target=drip)
        dripper.start()
        assert answer(dripping)[0] == 408
        assert time.monotonic() - began < 2
        dripping.shutdown(socket.SHUT_RDWR)
        dripper.join(10)


def test_a_second_request_has_the_same_time_limit(short_limits: ServerProcess) -> None:
    """Bytes between requests stop the keep-alive timer, so another timer has to run."""
    with ExitStack() as stack:
        for more in (b"", b"\r\n", b"G"):
            connection = connected(short_limits, stack)
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            connection.sendall(more)
            assert until_closed(connection) < 4


def test_a_body_that_arrives_too_slowly_gets_408_with_the_limit(short_limits: ServerProcess) -> None:
    with ExitStack() as stack:
        connection = connected(short_limits, stack)
        connection.sendall(HEAD % 1000 + b"\xff\xd8\xff")
        status, headers, problem = answer(connection)
        assert status == 408
        assert headers["connection"] == "close"
        assert str(problem["detail"]).startswith("The body arrives too slowly: 3 bytes in 1 s; the limit is 0.6 s")
        assert until_closed(connection) < 4


def test_a_client_that_reads_no_response_is_disconnected(short_limits: ServerProcess) -> None:
    """It sends requests until the responses fill all buffers between it and the server."""
    parts = urlsplit(short_limits.url)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((parts.hostname, parts.port))
        deaf.settimeout(0.2)
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < 30:
                with suppress(TimeoutError):  # the server has stopped reading, too
                    deaf.sendall(b"GET /model HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8)
                time.sleep(0.005)


def test_clients_that_read_nothing_do_not_lock_out_others(default_limits: ServerProcess, cat: bytes) -> None:
    parts = urlsplit(default_limits.url)
    with ExitStack() as stack:
        crowd = [stack.enter_context(socket.socket()) for _ in range(MOST)]
        for deaf in crowd:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((parts.hostname, parts.port))
            deaf.setblocking(False)
        for _ in range(400):
            for deaf in crowd:
                with suppress(BlockingIOError, ConnectionError):  # some have been closed
                    deaf.send(b"GET /model HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8)
        for _ in range(3):
            reply = httpx2.post(f"{default_limits.url}/upload", files={"file": ("cat.jpg", cat)}, timeout=10)
            assert reply.status_code == 200


def test_the_kernel_buffers_little_of_an_unread_response(default_limits: ServerProcess, cat: bytes) -> None:
    """A list of 32 predictions of 1000 classes each has 2.4 MB; by default Linux would buffer all of it."""
    form = httpx2.Request("POST", f"{default_limits.url}/upload?top_k=1000", files=[("file", ("a.jpg", cat))] * 32)
    body = form.read()
    head = f"POST /upload?top_k=1000 HTTP/1.1\r\nHost: localhost\r\nContent-Type: {form.headers['content-type']}\r\n"
    port = urlsplit(default_limits.url).port
    assert port
    with ExitStack() as stack:
        for deaf in [connected(default_limits, stack) for _ in range(3)]:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert deaf.recv(15) == b"HTTP/1.1 200 OK"
            assert 50_000 < unsent(port, deaf.getsockname()[1]) < 300_000


def unsent(port: int, peer: int) -> int:
    """Bytes in the send buffer of the server's end of a connection; -1 if the kernel has dropped it."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[2].endswith(f":{peer:04X}"):
            return int(fields[4].partition(":")[0], 16)
    return -1


def test_unread_data_of_a_closed_connection_is_discarded_in_time(short_limits: ServerProcess) -> None:
    """By default the kernel would keep it for many minutes."""
    port = urlsplit(short_limits.url).port
    assert port
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", port))
        deaf.sendall(b"GET /docs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        peer = deaf.getsockname()[1]
        give_up = time.monotonic() + 60
        while unsent(port, peer) <= 0:
            assert time.monotonic() < give_up
        while unsent(port, peer) > 0:
            assert time.monotonic() < give_up
            time.sleep(0.05)


def test_a_burst_of_connections_leaves_room_for_the_next(default_limits: ServerProcess) -> None:
    """A connection that the kernel drops is retried after a second."""
    parts = urlsplit(default_limits.url)
    assert parts.port
    with ExitStack() as stack:
        for _ in range(400):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", parts.port))
        began = time.monotonic()
        stack.enter_context(socket.create_connection(("127.0.0.1", parts.port), timeout=30))
        assert time.monotonic() - began < 0.9


def test_the_number_of_pipelined_requests_is_limited(default_limits: ServerProcess) -> None:
    """The first ones are answered, in order, and then the connection is closed."""
    with ExitStack() as stack:
        eager = connected(default_limits, stack)
        eager.sendall(
            b"".join(b"GET /nothing-%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number for number in range(500))
        )
        received = b""
        with suppress(ConnectionResetError):
            while more := eager.recv(65536):
                received += more
        assert received.count(b"HTTP/1.1 404 Not Found") == received.count(b"HTTP/1.1 ") == 9
        polite = connected(default_limits, stack)
        polite.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" * 9)
        received = b""
        while received.count(b"ok\n") < 9:
            received += polite.recv(65536)
        polite.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert polite.recv(65536).endswith(b"ok\n")


def test_requests_before_a_malformed_one_are_answered(default_limits: ServerProcess) -> None:
    broken = HEAD[: HEAD.index(b"Content-Length")] + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    with ExitStack() as stack:
        for before in (1, 3):
            connection = connected(default_limits, stack)
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" * before + broken)
            received = b""
            with suppress(ConnectionResetError):
                while more := connection.recv(65536):
                    received += more
            assert received.count(b"ok\n") == before


def test_a_pipelined_head_has_the_same_time_limit(short_limits: ServerProcess) -> None:
    with ExitStack() as stack:
        connection = connected(short_limits, stack)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /livez HTTP/1.1\r\nHo")
        began = time.monotonic()
        received = b""
        while more := connection.recv(65536):
            received += more
        assert received.startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1 408" in received
        assert time.monotonic() - began < 4


def test_too_many_header_fields_are_refused(default_limits: ServerProcess) -> None:
    with ExitStack() as stack:
        few, many = connected(default_limits, stack), connected(default_limits, stack)
        few.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 120 + b"\r\n")
        assert few.recv(65536).startswith(b"HTTP/1.1 200")
        many.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 128 + b"\r\n")
        status, _, problem = answer(many)
        assert (status, problem["detail"]) == (431, "The request has more headers than the limit of 128.")


def test_reset_connections_leave_nothing_behind(default_limits: ServerProcess) -> None:
    head = (
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
        + b"".join(b"h%d: %s\r\n" % (n, b"x" * 400) for n in range(120))
        + b"\r\n"
    )
    before = 0.0
    for number in range(700):
        with ExitStack() as stack:
            connection = connected(default_limits, stack)
            connection.sendall(head)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if number == 100:
            before = megabytes(default_limits.process.pid, "VmRSS")
    assert megabytes(default_limits.process.pid, "VmRSS") - before < 15


def test_a_client_that_got_100_continue_can_read_its_refusal(default_limits: ServerProcess) -> None:
    with ExitStack() as stack:
        connection = connected(default_limits, stack)
        connection.sendall(
            b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nExpect: 100-continue\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        for _ in range(28):  # eight more than the limit
            connection.sendall(b"100000\r\n" + bytes(2**20) + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert answer(connection)[0] == 413


@pytest.mark.parametrize("at_once", [True, False])
def test_an_upgrade_request_is_answered_as_http_1_1(default_limits: ServerProcess, cat: bytes, at_once: bool) -> None:
    """As sent by `curl --http2`: the body belongs to this request, even if it looks like another one."""
    head = (
        b"POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABk\r\n"
        b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    )
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as stack:
        connection = connected(default_limits, stack)
        for body, expected in ((cat, 200), (smuggled, 415)):
            sent = head % len(body) + body
            if at_once:
                connection.sendall(sent)
            else:
                for part in (sent[:60], sent[60 : -len(body)], body[:10], body[10:]):
                    connection.sendall(part)
                    time.sleep(0.05)
            assert answer(connection)[0] == expected
        connection.sendall(
            b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" * 2
        )
        received = b""
        while received.count(b"ok\n") < 2:
            received += connection.recv(65536)
    assert not any("smuggled" in line for line in default_limits.lines)


def test_a_refusal_after_the_whole_body_keeps_the_connection(default_limits: ServerProcess, cat: bytes) -> None:
    with ExitStack() as stack:
        whole, half = connected(default_limits, stack), connected(default_limits, stack)
        request = (HEAD % len(cat)).replace(b"/upload", b"/nothing") + cat
        for _ in range(2):
            whole.sendall(request)
            status, headers, _ = answer(whole)
            assert (status, headers.get("connection")) == (404, None)
        half.sendall((HEAD % 1_000_000).replace(b"/upload", b"/nothing") + cat)
        status, headers, _ = answer(half)
        assert (status, headers["connection"]) == (404, "close")


def test_lingering_after_a_response_is_not_part_of_its_duration(default_limits: ServerProcess) -> None:
    with ExitStack() as stack:
        connection = connected(default_limits, stack)
        connection.sendall(HEAD % 30_000_000 + b"x")
        status, headers, _ = answer(connection)
        assert status == 413
        for _ in range(10):  # a reset would be an error
            connection.sendall(b"x")
            time.sleep(0.1)
        connection.shutdown(socket.SHUT_WR)
        assert until_closed(connection) < 1
    (line,) = logged(default_limits, headers["x-request-id"])
    assert line["ms"] < 500


def test_a_malformed_body_after_100_continue_gets_400_only(default_limits: ServerProcess) -> None:
    with ExitStack() as stack:
        connection = connected(default_limits, stack)
        connection.sendall(
            b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nExpect: 100-continue\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nrubbish\r\n"
        )
        status, headers, problem = answer(connection)
        assert (status, problem["status"]) == (400, 400)
        assert until_closed(connection) < 4
    (line,) = logged(default_limits, headers["x-request-id"])
    assert (line["message"], line["status"]) == ("POST /upload 400", 400)
    assert not any('"level": "error"' in line for line in default_limits.lines)


def test_a_new_connection_is_refused_while_all_others_are_busy(cat: bytes) -> None:
    """The limit is two connections, and two images keep the decoder busy until its time limit."""
    flags = ("--model", str(TINY_MODEL), "--log-format", "json", "--max-connections", "2", "--threads", "1")
    slow = bmp(7000, 7000, 8, 1, b"\1\0" * 4_000_000)
    with running_server(sys.executable, *flags) as server, ExitStack() as stack:
        busy = [connected(server, stack) for _ in range(2)]
        for connection in busy:
            connection.sendall(HEAD % len(slow) + slow)
        time.sleep(0.5)
        status, headers, problem = answer(connected(server, stack))
        assert (status, headers["retry-after"]) == (503, "1")
        assert problem["title"] == "Service Unavailable"
        assert [answer(connection)[0] for connection in busy] == [422, 422]  # they were not evicted
        reply = httpx2.post(f"{server.url}/upload", files={"file": ("cat.jpg", cat)}, timeout=10)
        assert reply.status_code == 200


def test_all_uploads_together_are_limited(cat: bytes) -> None:
    flags = (*FLAGS, "--max-request-bytes", "1000000", "--max-upload-bytes", "2500000")
    with running_server(sys.executable, *flags) as server, ExitStack() as stack:
        arriving = [connected(server, stack) for _ in range(2)]
        for connection in arriving:
            connection.sendall(HEAD % 1_000_000 + bytes(999_999))
        time.sleep(0.3)
        refused = connected(server, stack)
        refused.sendall(HEAD % 600_000 + bytes(600_000))
        status, headers, problem = answer(refused)
        assert (status, headers["retry-after"]) == (429, "1")
        assert "the limit for all together is 2500000 bytes" in str(problem["detail"])
        reply = httpx2.post(f"{server.url}/upload", files={"file": ("cat.jpg", cat)}, timeout=10)
        assert reply.status_code == 200
        for connection in arriving:
            connection.close()
        time.sleep(0.2)
        again = connected(server, stack)
        again.sendall(HEAD % 900_000 + bytes(900_000))
        assert answer(again)[0] == 415


def test_it_raises_the_limit_on_open_files_or_reports_why_not() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 1200))

    command = [
        sys.executable,
        "-m",
        "serve",
        "--model",
        str(TINY_MODEL),
        "--streams",
        "1",
        "--port",
        "0",
        "--max-connections",
    ]
    done = subprocess.run([*command, "1000"], cwd=ROOT, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr == "serve: max_connections=1000 needs 1591 open files; lower it, or raise ulimit -Hn above 1200\n"
    )
    process = subprocess.Popen([*command, "400"], cwd=ROOT, preexec_fn=limit, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    assert "is ready" in process.stderr.readline()
    process.terminate()
    process.communicate(timeout=30)
