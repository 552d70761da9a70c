"""Hostile request heads: control characters in paths, worst-case headers, hosts, versions, targets."""

import random
from typing import Final

from tests.hostile.requests import HOST, VALID_IMAGES, Attack, Maker, head, post

ROUTES: Final = (
    b"/ /upload /model /livez /readyz /healthz /metrics /openapi.json /docs /v2 /v2/health/live /v2/health/ready "
    b"/v2/models/tiny /v2/models/tiny/ready /v2/models/tiny/infer /v2/models/tiny/versions/1/infer"
).split()
CONTROLS: Final = b"%0A %0D %0D%0A %00 %09 %1B %7F %C2%85 \n \r \0 \x1b \x7f \x85".split(b" ")
# All headers that anything between socket and handler reads.
HEADERS: Final = (
    b"Accept Access-Control-Request-Headers Access-Control-Request-Method Authorization Connection Content-Encoding "
    b"Content-Length Content-Type Cookie Expect Forwarded Host Inference-Header-Content-Length Origin Range "
    b"Sec-Fetch-Site Traceparent Transfer-Encoding Upgrade X-API-Key X-Forwarded-For X-Request-ID X-Request-Timeout-Ms"
).split()
# Beginning, repeated part, end: inputs that make regular expressions backtrack.
REPETITIONS: Final = (
    (b"a,", b" ", b",a"),
    (b"", b",", b""),
    (b"a;", b"\t", b";a"),
    (b"multipart/form-data", b"; a=b", b";"),
    (b'multipart/form-data; boundary="', b'\\"', b""),
    (b"form-data; filename*=UTF-8''", b"%41", b"%"),
    (b"", b"text/html;q=0.", b""),
    (b"", b"0", b"x"),
)
REPETITION_BYTES: Final = 60_000
NOT_FOUND: Final = frozenset({400, 404})


def path_with_control_characters(rng: random.Random) -> Attack:
    route, control = rng.choice(ROUTES), rng.choice(CONTROLS)
    at = rng.choice((len(route), 1, rng.randrange(1, len(route) + 1)))
    target = route[:at] + control + route[at:]
    if rng.random() < 0.3:
        target = b"http://127.0.0.1" + target
    return Attack(head(rng.choice((b"GET", b"POST")), target, b"Content-Length: 0\r\n"), NOT_FOUND | {405, 411})


def worst_case_header(rng: random.Random) -> Attack:
    begin, more, end = rng.choice(REPETITIONS)
    line = rng.choice(HEADERS) + b": " + begin + more * (REPETITION_BYTES // len(more)) + end + b"\r\n"
    if rng.random() < 0.5:
        return Attack(head(b"GET", b"/", line), frozenset({200, 400, 403, 413}))
    return Attack(post(VALID_IMAGES["rgb.jpg"], line), frozenset({200, 400, 403, 413, 415}))


def worst_case_query(rng: random.Random) -> Attack:
    query = rng.choice((b"a" * 60_000, b"&" * 60_000, b"a&" * 30_000, b"%41" * 20_000, b"top_k=" + b"0" * 60_000))
    return Attack(
        post(VALID_IMAGES["rgb.jpg"], target=b"/upload?" + query[: rng.choice((10_000, 60_000))]), frozenset({400, 414})
    )


def odd_host(rng: random.Random) -> Attack:
    host = rng.choice((b"a b", b"[::1", b"a:b", b"user@a", b"\xff", b"a" * 9000, b"rebound.example", b"a,b", b"%61"))
    data = head(b"GET", b"/livez").replace(HOST, b"Host: " + host + b"\r\n")
    return Attack(data, frozenset({400, 403}))


def odd_version(rng: random.Random) -> Attack:
    version = rng.choice((b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.2", b"RTSP/1.0", b"ICE/1.0", b"HTTP/1.1.1", b"http/1.1"))
    return Attack(head(b"GET", b"/livez").replace(b"HTTP/1.1", version), frozenset({400}))


def target_for_another_host(rng: random.Random) -> Attack:
    target = rng.choice((b"http://evil.example/livez", b"http://127.0.0.1@evil/livez", b"http://127.0.0.1:1/livez"))
    return Attack(head(b"GET", target), frozenset({400}))


def connection_close_trailer(rng: random.Random) -> Attack:
    data = head(more=b"Content-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n")
    return Attack(data + b"1\r\nx\r\n0\r\nConnection: close\r\n\r\n" + head(b"GET", b"/model"), frozenset({415}))


def half_close(rng: random.Random) -> Attack:
    more = head(b"GET", b"/livez") * rng.randrange(3)
    return Attack(post(VALID_IMAGES["rgb.jpg"]) + more, frozenset({200}), leave=True)


# Weights of the kinds, relative to those in `requests.KINDS`.
KINDS: Final[dict[Maker, int]] = {
    path_with_control_characters: 60,
    worst_case_header: 40,
    worst_case_query: 10,
    odd_host: 15,
    odd_version: 10,
    target_for_another_host: 10,
    connection_close_trailer: 10,
    half_close: 10,
}
