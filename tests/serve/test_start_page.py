"""Tests who gets the page or plain text, and with which headers; tests/browser tests the page itself."""

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve.api.openapi.docs_page import render_docs_page
from serve.api.openapi.document import openapi_document
from serve.api.start_page import prefers_html, start_page, with_address
from serve.config.settings import Config
from serve.imaging.formats import ACCEPTED_FORMATS
from tests.serve.conftest import ClientFor
from tests.stub_classifier import stub_classifier

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    "accept",
    [BROWSER, "text/html", "text/html;q=0.5, text/plain;q=0.4", "TEXT/HTML;charset=utf-8", "text/html, */*;q=0"],
)
def test_browsers_prefer_html(accept: str) -> None:
    assert prefers_html(accept)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/plain",
        "text/*",
        "application/json",
        "text/plain, text/html",
        "text/html;q=0.4, text/plain;q=0.5",
        "text/html;q=0.1, */*",
        "text/html;q=nonsense, text/plain",
        ";;;,,,q=",
    ],
)
def test_other_clients_do_not_prefer_html(accept: str) -> None:
    assert not prefers_html(accept)


def test_curl_gets_plain_text_and_a_browser_the_page(client: TestClient) -> None:
    plain, page = client.get("/"), client.get("/", headers={"Accept": BROWSER})
    assert (plain.text, plain.headers["content-type"]) == ("Server is Running\n", "text/plain; charset=utf-8")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert plain.headers["vary"] == page.headers["vary"] == "Accept"
    assert "content-security-policy" not in plain.headers


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_may_load_and_run_only_its_own_content(client: TestClient, path: str) -> None:
    answer = client.get(path, headers={"Accept": BROWSER})
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    for tag in ("style", "script"):
        bodies = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", answer.text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
        assert policy[f"{tag}-src"] == (" ".join(f"'sha256-{each}'" for each in hashes) or "'none'")
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert not re.search(r"unsafe|https?:|\*", answer.headers["content-security-policy"])
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"""\s(?:on\w+|style)=["']""", answer.text)  # which the policy would forbid


def test_the_page_has_this_servers_limits(client_for: ClientFor, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key\n")
    client = client_for(max_request_bytes=3 * 2**20, max_pixels=7_500_000, api_keys_file=keys)
    page = client.get("/", headers={"Accept": BROWSER}).text
    assert f"{', '.join(ACCEPTED_FORMATS)}; up to 3 MiB and 7.5 megapixels each." in page
    assert "never leave the machine it runs on" in page
    found = re.search(r'data-settings="([^"]*)"', page)
    assert found
    assert json.loads(html.unescape(found[1])) == {
        "maxBytes": 3 * 2**20,
        "maxFiles": 32,
        "topK": 5,
        "variant": "fp32",
        "wantsKey": True,
    }
    assert "{{" not in page
    assert 'curl -F "file=@cat.jpg"' in page[page.index("<noscript>") : page.index("</noscript>")]


def test_markup_in_names_stays_text() -> None:
    name = '<script>alert(1)</script>"&'
    text = start_page(Config(), stub_classifier(name, variant=name))
    assert html.escape(name) in text
    assert "<script>alert" not in text
    described = openapi_document(Config(), stub_classifier(name))
    docs = render_docs_page(described)
    assert "<script>alert" not in docs


@pytest.mark.parametrize("host", ["pictures.example", "10.0.0.7:8080", "[::1]:5000", "localhost"])
def test_the_curl_command_has_the_requested_host(client: TestClient, host: str) -> None:
    page = client.get("/", headers={"Accept": BROWSER, "Host": host})
    assert f'curl -F "file=@cat.jpg" http://{host}/upload</code>' in page.text
    assert "127.0.0.1" not in page.text


@pytest.mark.parametrize(
    "host", ["", "a b", "<script>", 'x"; rm -rf ~; "', "x&y", "$(id)", "[", "a:b", "a:123456", "é"]
)
def test_an_invalid_host_is_not_echoed(client: TestClient, host: str) -> None:
    page = client.get("/", headers={b"Accept": BROWSER.encode(), b"Host": host.encode()})
    assert (page.status_code, "http://127.0.0.1:5000/upload" in page.text) == (200, True)
    plain = "http://127.0.0.1:5000"
    assert with_address(plain, "http", host) == with_address(plain, "file", "localhost") == plain
    assert with_address(plain, "https", "localhost") == "https://localhost"
