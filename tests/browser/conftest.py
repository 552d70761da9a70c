"""The start page in a real browser. Settings: CHROMIUM, its command; SCREENSHOTS, a folder for screenshots."""

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.server_process import ROOT, ServerProcess, running_server

PYTHON = ROOT / ".venv" / "runtime" / "bin" / "python"
# Without these flags Chromium itself connects to hosts of its vendor. Its sandbox does not work as root.
FLAGS = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    with running_server(PYTHON, "--log-format", "json") as started:
        yield started


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    command = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not command:
        raise pytest.UsageError("no Chromium found: apt-get install chromium, or set CHROMIUM to its command")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=command, args=FLAGS, chromium_sandbox=os.getuid() != 0)
        yield started
        started.close()


class Visit:
    """An opened page.

    Attributes:
        page: The page.
        url: The address that was opened.
        complaints: Errors and warnings that the page logged.
        asked: URLs that the page requested.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self._note(message.type in ("error", "warning"), message.text))
        page.on("pageerror", lambda error: self._note(True, str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(url)

    def _note(self, bad: bool, text: str) -> None:
        if bad:
            self.complaints.append(text)

    def drop(self, *files: tuple[str, bytes]) -> None:
        """Drops files on the page."""
        self._give("#drop", "drop", files)

    def paste(self, *files: tuple[str, bytes]) -> None:
        """Pastes files from the clipboard."""
        self._give("body", "paste", files)

    def _give(self, selector: str, event: str, files: tuple[tuple[str, bytes], ...]) -> None:
        self.page.eval_on_selector(
            selector,
            """(target, [event, files]) => {
                const data = new DataTransfer();
                for (const [name, base64] of files) {
                    const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
                    data.items.add(new File([bytes], name));
                }
                const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
                const made = event === "paste" ? new ClipboardEvent(event, options) : new DragEvent(event, options);
                target.dispatchEvent(made);
            }""",
            [event, [[name, base64.b64encode(data).decode()] for name, data in files]],
        )

    def card(self, name: str) -> Any:
        """Returns the result of the file with this name."""
        return self.page.locator("li.card", has=self.page.get_by_role("heading", name=name, exact=True))


@pytest.fixture
def visit(browser: Browser, server: ServerProcess) -> Iterator[Visit]:
    """Opens the page; afterwards checks that it logged no error and made requests to the server only."""
    page = browser.new_page(viewport={"width": 1000, "height": 760})
    made = Visit(page, server.url)
    yield made
    page.close()
    assert made.complaints == []
    assert {each.split("?")[0] for each in made.asked if not each.startswith(("blob:", "data:"))} <= {
        f"{server.url}/",
        f"{server.url}/upload",
    }


@pytest.fixture(scope="session")
def photos() -> dict[str, bytes]:
    folder = ROOT / "tests" / "data" / "photos"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.jpg"))}


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
