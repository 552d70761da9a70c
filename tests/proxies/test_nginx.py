"""The server behind the nginx of SECURITY.md: what is answered, and what no spelling of a path reaches."""

import http.client
import json
import ssl
import time

import pytest

from tests.proxies.conftest import NAME, Proxied
from tests.references import DATA

METRICS = b"serve_requests_total"
SPELLINGS = (
    "/metrics",
    "/metrics%0A",
    "/metrics%0D",
    "/metrics%00",
    "/metrics%20",
    "/metrics/",
    "/metrics;",
    "/metrics?a=b",
    "//metrics",
    "/./metrics",
    "/x/../metrics",
    "/%6Detrics",
    "/%2Fmetrics",
    "/METRICS",
    "/livez/..%2Fmetrics",
)


@pytest.fixture(scope="module")
def cat() -> bytes:
    return (DATA / "photos" / "cat.jpg").read_bytes()


def ask(
    proxied: Proxied, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    """Sends a request and returns status, body and headers; repeats it while `limit_req` answers 429."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", proxied.port, context=context, timeout=20)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Host": NAME, **named})
        answer = connection.getresponse()
        status, content = answer.status, answer.read()
    finally:
        connection.close()
    if status != 429:
        return status, content, answer.headers
    time.sleep(0.2)
    return ask(proxied, method, path, body, **headers)


def test_an_upload_is_answered(proxied: Proxied, cat: bytes) -> None:
    headers = {"Content_Type": "image/jpeg", "Authorization": "Bearer the-key"}
    status, body, _ = ask(proxied, "POST", "/upload", cat, **headers)
    assert (status, json.loads(body)["model"]) == (200, "tiny")
    own = {"Origin": f"https://{NAME}", "Sec_Fetch_Site": "same-origin"}
    assert ask(proxied, "POST", "/upload", cat, **headers, **own)[0] == 200
    foreign = {"Origin": f"https://evil{NAME}", "Sec_Fetch_Site": "cross-site"}
    assert ask(proxied, "POST", "/upload", cat, **headers, **foreign)[0] == 403


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_of_the_path_reaches_the_metrics(proxied: Proxied, path: str) -> None:
    status, body, _ = ask(proxied, "GET", path)
    assert status in (400, 403, 404)
    assert METRICS not in body


@pytest.mark.parametrize("path", ["/upload", "/upload%0A", "/upload%0D", "//upload", "/x/../upload", "/%75pload"])
def test_no_spelling_of_the_path_bypasses_the_key(proxied: Proxied, cat: bytes, path: str) -> None:
    assert ask(proxied, "POST", path, cat, Content_Type="image/jpeg")[0] in (400, 401, 404)


def test_only_the_listed_host_is_served(proxied: Proxied) -> None:
    assert ask(proxied, "GET", "/livez")[0] == 200
    assert ask(proxied, "GET", "/livez", Host="rebound.example")[0] == 403


def test_headers_at_the_limit_of_nginx_are_answered_quickly(proxied: Proxied) -> None:
    started = time.monotonic()
    for _ in range(15):
        assert ask(proxied, "GET", "/", Accept="a," + " " * 8000 + ",a")[0] == 200
    assert time.monotonic() - started < 3


def test_the_log_has_the_request_id_of_nginx_and_no_forged_address(proxied: Proxied) -> None:
    _, _, headers = ask(proxied, "GET", "/livez", X_Forwarded_For="203.0.113.9", X_Request_ID="my-own")
    identifier = headers["X-Request-ID"]
    assert identifier != "my-own"
    assert "203.0.113.9" not in proxied.server.wait_for_line(identifier)
