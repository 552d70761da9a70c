"""Tests which hosts are served, and which pages count as the server's own."""

import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.testclient import TestClient

from serve.config.hosts import AllowedHosts, host_name, is_same_origin
from tests.serve.conftest import ClientFor
from tests.server_process import ServerProcess, running_server
from tests.tiny_model import PATH as TINY_MODEL

LOOPBACK = [
    "localhost",
    "LOCALHOST:5000",
    "localhost.",
    "page.localhost:80",
    "127.0.0.1",
    "127.8.9.10:5000",
    "[::1]:5000",
]
ELSEWHERE = [
    "evil.example",
    "localhost.evil.example",
    "evillocalhost",
    "127.0.0.1.evil.example",
    "192.168.1.7",
    "[fe80::1]",
]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("example.org", "example.org"),
        ("Example.ORG:8443", "example.org"),
        ("example.org.", "example.org"),
        ("my_service:80", "my_service"),
        ("[2001:DB8::1]:443", "2001:db8::1"),
        ("localhost:", "localhost"),
    ],
)
def test_a_hosts_name_is_read_without_its_port(host: str, name: str) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "a,b",
        "user@host",
        "http://a",
        "a/b",
        "a:b",
        "a:123456",
        "[::1",
        "::1",
        "[x]",
        "a\n",
        "é",
        "a" * 254,
        "%61",
    ],
)
def test_a_malformed_host_has_no_name(host: str) -> None:
    assert host_name(host) is None


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "localhost", "LOCALHOST", "127.0.0.2", "127.1", "0x7f000001", "::ffff:127.0.0.1"]
)
def test_a_server_on_loopback_answers_to_loopback_alone(address: str) -> None:
    hosts = AllowedHosts((), address)
    assert all(host in hosts for host in ["", *LOOPBACK])
    assert not any(host in hosts for host in [*ELSEWHERE, "a b"])


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.7", "server.invalid"])
def test_a_server_on_a_network_answers_to_any_host_by_default(address: str) -> None:
    assert all(host in AllowedHosts((), address) for host in ["", *LOOPBACK, *ELSEWHERE])
    hosts = AllowedHosts(("Example.org.", "*.example.net"), address)
    for host in ("example.org:443", "EXAMPLE.ORG", "a.example.net", "a.b.example.net:80", "10.1.2.3:5000", "[::1]", ""):
        assert host in hosts
    for host in (*LOOPBACK, address if ":" not in address else f"[{address}]"):  # which health checks and curl use
        assert host in hosts
    for host in ("www.example.org", "example.net", "aexample.net", "example.org.evil", "evilexample.org", "elsewhere"):
        assert host not in hosts


def test_a_star_stands_for_any() -> None:
    assert "evil.example" in AllowedHosts(("*",), "127.0.0.1")


@pytest.mark.parametrize(
    ("origin", "site", "scheme", "host", "own"),
    [
        ("http://testserver", "", "http", "testserver", True),
        ("http://testserver:80", "", "http", "testserver", False),
        ("https://testserver", "", "http", "testserver", False),
        ("http://testserver", "", "https", "testserver", False),
        ("https://testserver", "same-origin", "http", "testserver", True),  # behind a proxy that ends TLS
        ("http://testserver", "same-site", "http", "testserver", False),
        ("http://testserver", "cross-site", "http", "testserver", False),
        ("http://eviltestserver", "", "http", "testserver", False),
        ("http://testserver.evil.example", "", "http", "testserver", False),
        ("http://", "", "http", "", False),
        ("null", "", "http", "testserver", False),
    ],
)
def test_a_page_is_the_servers_own_by_scheme_host_and_port(
    origin: str, site: str, scheme: str, host: str, own: bool
) -> None:
    assert is_same_origin(origin, site, scheme, host) == own


@pytest.mark.parametrize(
    "origin", ["http://eviltestserver", "https://testserver", "http://testserver:8080", "testserver"]
)
def test_pages_of_similar_origins_are_refused(client: TestClient, cat: bytes, origin: str) -> None:
    answer = client.post("/upload", files={"file": cat}, headers={"Origin": origin})
    assert (answer.status_code, origin in answer.json()["detail"]) == (403, True)


@pytest.mark.parametrize(
    "origin",
    [
        "https://elsewhere.example.evil",
        "https://evil-elsewhere.example",
        "http://elsewhere.example",
        "https://elsewhere.exampl",
    ],
)
def test_origins_similar_to_a_listed_one_are_refused(client_for: ClientFor, cat: bytes, origin: str) -> None:
    client = client_for(cors_origins=("https://elsewhere.example",))
    answer = client.post("/upload", files={"file": cat}, headers={"Origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_listed_page_may_read_the_headers_it_needs(client_for: ClientFor) -> None:
    client = client_for(cors_origins=("https://elsewhere.example",))
    answer = client.get("/livez", headers={"Origin": "https://elsewhere.example"})
    exposed = {each.strip() for each in answer.headers["access-control-expose-headers"].split(",")}
    assert exposed == {"X-Request-ID", "Retry-After", "Server-Timing", "Inference-Header-Content-Length"}


def test_a_host_that_is_not_served_gets_a_403_that_names_the_setting(client_for: ClientFor) -> None:
    client = client_for(allowed_hosts=("example.org",))
    assert client.get("/livez", headers={"Host": "example.org"}).status_code == 200
    answer = client.get("/livez", headers={"Host": "evil.example", "Origin": "http://evil.example"})
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert (
        answer.json()["detail"] == "The host 'evil.example' is not served here; --allowed-hosts lists those that are."
    )
    metrics = client.get("/metrics", headers={"Host": "example.org"}).text
    assert 'serve_rejected_total{reason="foreign_host"} 1.0' in metrics
    assert 'serve_rejected_total{reason="foreign_origin"} 0.0' in metrics


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(sys.executable, "--model", str(TINY_MODEL), "--log-format", "json") as process:
        yield process


def test_dns_rebinding_is_refused(server: ServerProcess, cat: bytes) -> None:
    port = urlsplit(server.url).port
    for name, status in (("127.0.0.1", 200), ("localhost", 200), ("rebound.example", 403)):
        own = f"{name}:{port}"
        answer = httpx2.post(
            f"{server.url}/upload", files={"file": cat}, headers={"Host": own, "Origin": f"http://{own}"}
        )
        assert answer.status_code == status


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-IP", "Forwarded"])
def test_no_client_forges_its_address_or_scheme(server: ServerProcess, header: str) -> None:
    value = "for=203.0.113.9;proto=https" if header == "Forwarded" else "203.0.113.9"
    sent = {header: value, "X-Forwarded-Proto": "https", "X-Request-ID": f"forged-{header}", "Accept": "text/html"}
    page = httpx2.get(server.url, headers=sent).text
    assert server.url in page
    assert "https://127.0.0.1" not in page
    server.wait_for_line(f"forged-{header}")
    (line,) = [each for each in server.log if each.get("request_id") == f"forged-{header}"]
    assert line["client"] == "127.0.0.1"
