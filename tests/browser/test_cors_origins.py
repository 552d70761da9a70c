"""Which `Origin` a browser really sends, and that pages of listed origins can use the server."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import PYTHON
from tests.field.origins import SENT, WRITTEN_OTHERWISE
from tests.local_host import serving
from tests.server_process import ServerProcess, running_server, wait_for

PAGE = "<!doctype html><title>a page</title>"
SEND = """async ([server, bytes]) => {
    const form = new FormData();
    form.append("file", new Blob([Uint8Array.from(bytes)]), "cat.jpg");
    const request = { method: "POST", body: form, headers: { "X-API-Key": "any" } };  // the key makes it ask first
    try {
        const answer = await fetch(`${server}/upload`, request);
        return [answer.status, answer.headers.get("X-Request-ID") !== null];
    } catch (error) {
        return String(error);
    }
}"""


@pytest.fixture(scope="module")
def cat(photos: dict[str, bytes]) -> list[int]:
    return list(photos["cat.jpg"])


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page()
    yield opened
    opened.close()


def test_browsers_send_what_the_messages_say(page: Page) -> None:
    """By the browser's own parser, for the schemes that it gives an origin."""
    entries = {
        entry: sent
        for entry, sent in WRITTEN_OTHERWISE.items()
        if re.match("https?:", entry, re.IGNORECASE) and "*" not in entry
    }
    entries |= {entry: entry for entry in SENT if entry.startswith("http")}
    found = page.evaluate("entries => entries.map(entry => new URL(entry).origin)", list(entries))
    assert dict(zip(entries, found, strict=True)) == entries
    assert len(entries) > 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pages")
    (made / "page.html").write_text(PAGE)
    (made / "frame.html").write_text(f"""<iframe sandbox="allow-scripts" srcdoc="{PAGE}"></iframe>""")
    return made


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[str]:
    """The address of another host, which has the pages."""
    with serving(folder) as url:
        yield url


@pytest.fixture(scope="module")
def listing(site: str) -> Iterator[ServerProcess]:
    """A server that lists the origins of all pages."""
    origins = f"{site},{international(site)},null"
    flags = ("--model", "efficientnet_lite0", "--log-format", "json", "--cors-origins", origins)
    with running_server(PYTHON, *flags) as started:
        yield started


def international(site: str, name: str = "xn--bcher-kva") -> str:
    return site.replace("127.0.0.1", f"{name}.localhost")


@pytest.mark.parametrize("kind", ["http", "international", "file", "sandboxed"])
def test_a_page_reaches_a_server_that_lists_its_origin_and_no_other(
    kind: str, page: Page, folder: Path, site: str, listing: ServerProcess, server: ServerProcess, cat: list[int]
) -> None:
    addresses = {
        "http": f"{site}/page.html",
        "international": f"{international(site, 'bücher')}/page.html",
        "file": (folder / "page.html").as_uri(),
        "sandboxed": f"{site}/frame.html",
    }
    page.goto(addresses[kind])
    frame: Any = page.frames[-1]
    assert frame.evaluate(SEND, [listing.url, cat]) == [200, True]
    lines = len(server.lines)
    assert frame.evaluate(SEND, [server.url, cat]) == "TypeError: Failed to fetch"
    wait_for(lambda: [line["reason"] for line in server.log[lines:] if "reason" in line] == ["foreign_origin"])
