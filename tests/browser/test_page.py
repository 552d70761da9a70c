"""The start page: dropping, pasting and choosing pictures, reading the results, accessibility."""

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import PYTHON, Visit
from tests.server_process import ROOT, ServerProcess, running_server

WAIT = 20_000
TRUNCATED = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()[:9000]


def test_a_good_and_a_bad_file_are_dropped_and_read(visit: Visit, photos: dict[str, bytes]) -> None:
    visit.drop(("cat.jpg", photos["cat.jpg"]), ("half.jpg", TRUNCATED), ("notes.txt", b"hello"))
    good, half, text = visit.card("cat.jpg"), visit.card("half.jpg"), visit.card("notes.txt")
    expect(good.locator("ol.labels li")).to_have_count(5, timeout=WAIT)
    labels = good.locator("ol.labels li").all_inner_texts()
    assert all(re.search(r"\d+\.\d %", label) for label in labels)
    shares = [float(re.findall(r"(\d+\.\d) %", label)[0]) for label in labels]
    assert shares == sorted(shares, reverse=True)
    widths = [bar.bounding_box()["width"] for bar in good.locator(".fill").all()]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 2 * widths[4]
    assert re.search(r"\d+ ms at the server \(\w+ \d+\) · \w+, (int8|fp32)", good.inner_text())
    expect(half.locator(".problem")).to_contain_text("truncated or corrupt", timeout=WAIT)
    expect(text.locator(".problem")).to_contain_text("not an image in an accepted format", timeout=WAIT)
    expect(visit.page.get_by_role("status")).to_have_text("1 of 3 pictures classified, 2 failed.", timeout=WAIT)
    picture = good.locator("img")
    assert picture.evaluate("each => each.complete && each.naturalWidth") > 0


def test_pictures_are_pasted_and_chosen(visit: Visit, photos: dict[str, bytes], tmp_path: Path) -> None:
    visit.paste(("image.png", photos["coffee.jpg"]))
    expect(visit.card("image.png").locator("ol.labels li")).to_have_count(5, timeout=WAIT)
    expect(visit.page.get_by_role("status")).to_contain_text("image.png: ")
    visit.page.get_by_label("Choose pictures").set_input_files(
        [ROOT / "tests" / "data" / "photos" / name for name in ("cat.jpg", "rocket.jpg")]
    )
    for name in ("cat.jpg", "rocket.jpg"):
        expect(visit.card(name).locator("ol.labels li")).to_have_count(5, timeout=WAIT)
    visit.page.get_by_role("button", name="Remove all").click()
    expect(visit.page.locator("li.card")).to_have_count(0)
    assert visit.page.evaluate("document.activeElement.id") == "choose"


def test_many_pictures_are_all_classified(visit: Visit, photos: dict[str, bytes]) -> None:
    visit.drop(*[(f"{number}.jpg", photos["rocket.jpg"]) for number in range(40)])
    expect(visit.page.get_by_role("status")).to_have_text("40 of 40 pictures classified.", timeout=3 * WAIT)


def test_empty_and_too_large_files_are_refused_without_a_request(visit: Visit) -> None:
    visit.drop(("empty.jpg", b""))
    expect(visit.card("empty.jpg").locator(".problem")).to_have_text("The file is empty.")
    visit.page.evaluate("add([new File([new Uint8Array(21 * 1024 * 1024)], 'huge.jpg')])")
    visit.page.evaluate("add([new File([new Uint8Array(20 * 1024 * 1024)], 'full.jpg')])")
    for name, size in (("huge.jpg", "21.0"), ("full.jpg", "20.0")):
        words = f"The file has {size} MiB; the limit is 20 MiB, including the form around it."
        expect(visit.card(name).locator(".problem")).to_have_text(words)
    # Browsers pass a folder as a file that has a size and cannot be read.
    visit.page.evaluate(
        """() => {
            const folder = new File([new Uint8Array(4096)], "holidays");
            folder.slice = () => ({ arrayBuffer: () => Promise.reject(new DOMException("", "NotReadableError")) });
            add([folder]);
        }"""
    )
    expect(visit.card("holidays").locator(".problem")).to_contain_text("If it is a folder, drop the pictures in it.")
    assert not any("upload" in url for url in visit.asked)


def test_without_server_timing_the_page_shows_the_time_it_measured(
    browser: Browser, server: ServerProcess, photos: dict[str, bytes]
) -> None:
    page = browser.new_page()

    def answer(route: Any) -> None:
        real = route.fetch()
        assert real.headers["server-timing"]
        route.fulfill(response=real, headers={"Content-Type": "application/json"})

    page.route("**/upload*", answer)
    visit = Visit(page, server.url)
    visit.drop(("cat.jpg", photos["cat.jpg"]))
    expect(visit.card("cat.jpg")).to_contain_text(re.compile(r"\d+ ms round trip · \w+, (int8|fp32)"), timeout=WAIT)
    page.close()


# Replaces fetch: answers immediately, or when `release` is called. `asked` counts the requests.
INSTANT = """(held) => {
    asked = 0;
    const top_k = [1, 2, 3, 4, 5].map((place) => ({ label: "tabby", index: place, probability: 1 / (place + 1) }));
    const answer = { filename: "", model: "none", label: "tabby", index: 1, probability: 0.5, top_k };
    const gate = new Promise((open) => { release = open; });
    if (!held) release();
    fetch = async (url, { signal }) => {
        asked += 1;
        await gate;
        if (signal.aborted) throw signal.reason;
        return new Response(JSON.stringify({ results: [answer] }));
    };
}"""


def test_removed_pictures_are_not_counted(visit: Visit, photos: dict[str, bytes]) -> None:
    page, status = visit.page, visit.page.get_by_role("status")
    visit.drop(*[(f"{number}.jpg", photos["rocket.jpg"]) for number in range(30)])
    expect(page.locator("ol.labels").first).to_be_visible(timeout=WAIT)
    page.get_by_role("button", name="Remove all").click()
    page.wait_for_timeout(500)
    expect(status).to_have_text("")
    expect(page.locator("li.card")).to_have_count(0)
    visit.drop(("cat.jpg", photos["cat.jpg"]), ("notes.txt", b"hello"), ("rocket.jpg", photos["rocket.jpg"]))
    expect(status).to_have_text("2 of 3 pictures classified, 1 failed.", timeout=WAIT)
    expect(page.locator("li.card")).to_have_count(3)
    visit.drop(("again.jpg", photos["cat.jpg"]))
    expect(status).to_contain_text("again.jpg: ", timeout=WAIT)


def test_answers_after_remove_all_are_ignored(visit: Visit) -> None:
    page, status = visit.page, visit.page.get_by_role("status")
    page.evaluate(INSTANT, True)
    visit.drop(("a.jpg", b"a"), ("b.jpg", b"b"), ("c.jpg", b"c"))
    expect(page.get_by_text("Looking …")).to_have_count(2)
    page.get_by_role("button", name="Remove all").click()
    visit.drop(("d.jpg", b"d"), ("e.jpg", b"e"), ("f.jpg", b"f"))
    expect(page.get_by_text("Looking …")).to_have_count(2)
    assert page.evaluate("asked") == 4
    page.evaluate("release()")
    expect(status).to_have_text("3 of 3 pictures classified.", timeout=WAIT)
    expect(page.locator("li.card h2")).to_have_text(["d.jpg", "e.jpg", "f.jpg"])
    assert page.evaluate("[asked, active, done, total]") == [5, 0, 3, 3]


def test_thousands_of_pictures_do_not_freeze_the_page(visit: Visit, photos: dict[str, bytes]) -> None:
    page = visit.page
    page.evaluate(INSTANT, True)
    milliseconds = page.evaluate(
        """(bytes) => {
            const data = new Uint8Array(bytes);
            const files = Array.from({ length: 2000 }, (_, place) => new File([data], `${place}.jpg`));
            const began = performance.now();
            add(files);
            document.body.offsetHeight;
            return performance.now() - began;
        }""",
        list(photos["cat.jpg"][:2000]),
    )
    assert milliseconds < 1000
    expect(page.locator("#more")).to_have_text("1978 more waiting")
    expect(page.locator("li.card")).to_have_count(22)
    page.evaluate("release()")
    expect(page.get_by_role("status")).to_have_text("2000 of 2000 pictures classified.", timeout=3 * WAIT)
    expect(page.locator("ol.labels")).to_have_count(2000)
    expect(page.locator("#more")).to_be_hidden()
    order = page.evaluate("[...document.querySelectorAll('li.card h2')].map((each) => parseInt(each.textContent))")
    assert order == list(range(2000))


def test_a_screen_reader_gets_a_few_progress_messages(visit: Visit) -> None:
    page = visit.page
    page.evaluate(INSTANT)
    page.evaluate(
        """() => {
            const instant = fetch;
            fetch = async (...all) => { await new Promise((wake) => setTimeout(wake, 400)); return instant(...all); };
            news = [];
            new MutationObserver(() => news.push(status.textContent)).observe(status, { childList: true });
        }"""
    )
    visit.drop(*[(f"{number}.jpg", b"x") for number in range(40)])  # eight seconds
    expect(page.get_by_role("status")).to_have_text("40 of 40 pictures classified.", timeout=2 * WAIT)
    news = page.evaluate("news")
    assert 2 <= len(news) <= 6
    assert news[-1] == "40 of 40 pictures classified."
    assert all(re.fullmatch(r"\d+ of 40 pictures classified so far\.", each) for each in news[:-1])


def test_a_drop_without_files_says_what_to_do(visit: Visit) -> None:
    visit.drop()
    words = "That is not a file; save the picture first, or copy and paste it."
    expect(visit.page.get_by_role("status")).to_have_text(words)
    visit.paste()
    expect(visit.page.locator("li.card")).to_have_count(0)


def test_a_busy_server_is_asked_again(browser: Browser, server: ServerProcess, photos: dict[str, bytes]) -> None:
    page = browser.new_page()
    asked: list[Any] = []

    def answer(route: Any) -> None:
        asked.append(route)
        if len(asked) == 1:
            route.fulfill(status=429, headers={"Retry-After": "1"}, json={"status": 429, "detail": "full"})
        else:
            route.continue_()

    page.route("**/upload*", answer)
    visit = Visit(page, server.url)
    visit.drop(("cat.jpg", photos["cat.jpg"]))
    expect(visit.card("cat.jpg")).to_contain_text("The server is busy; trying again in 1 s", timeout=WAIT)
    expect(visit.card("cat.jpg").locator("ol.labels li")).to_have_count(5, timeout=WAIT)
    page.close()


def test_a_stopped_server_is_reported(browser: Browser, photos: dict[str, bytes]) -> None:
    page = browser.new_page()
    with running_server(PYTHON, "--model", "efficientnet_lite0", "--log-format", "json") as server:
        visit = Visit(page, server.url)
        server.stop()
    visit.drop(("cat.jpg", photos["cat.jpg"]))
    expect(visit.card("cat.jpg").locator(".problem")).to_contain_text("The server does not answer", timeout=WAIT)
    page.close()


def test_the_page_asks_for_an_api_key_if_the_server_requires_one(
    browser: Browser, photos: dict[str, bytes], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("open-sesame\n")
    flags = ("--model", "efficientnet_lite0", "--log-format", "json", "--api-keys-file", str(keys))
    page = browser.new_page()
    with running_server(PYTHON, *flags) as server:
        visit = Visit(page, server.url)
        visit.drop(*[(f"{number}.jpg", photos["cat.jpg"]) for number in range(30)])
        field, status = page.get_by_label("API key"), page.get_by_role("status")
        expect(status).to_have_text("An API key is needed.")
        expect(field).to_be_focused()
        expect(page.get_by_text("Waiting for the API key")).to_have_count(20)
        assert not any("upload" in url for url in visit.asked)
        page.evaluate("focused = 0; secret.addEventListener('focus', () => { focused += 1; })")
        field.press_sequentially("open-sesamy")
        visit.page.get_by_label("Choose pictures").focus()  # leaving the field submits the key, as Enter does
        expect(status).to_contain_text("key", timeout=WAIT)
        expect(field).to_be_focused()
        expect(page.get_by_text("Waiting for the API key")).to_have_count(22, timeout=WAIT)
        page.wait_for_timeout(300)
        assert sum("upload" in url for url in visit.asked) <= 2
        assert page.evaluate("focused") == 1
        field.press_sequentially("open-sesame")  # replaces the wrong key, which is selected
        field.press("Enter")
        expect(status).to_have_text("30 of 30 pictures classified.", timeout=3 * WAIT)
        expect(page.locator(".problem")).to_have_count(0)
    page.close()


def test_it_works_with_the_keyboard_alone(visit: Visit) -> None:
    reached = []
    for _ in range(4):
        visit.page.keyboard.press("Tab")
        reached.append(visit.page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent"))
    assert reached[:3] == ["Choose pictures", "API documentation", "Model card"]
    visit.page.get_by_label("Choose pictures").focus()
    outline = visit.page.eval_on_selector(".button", "each => getComputedStyle(each).outlineStyle")
    assert outline == "solid"
    with visit.page.expect_file_chooser() as chooser:
        visit.page.evaluate("0")  # waits until the browser expects a file chooser, which a key press alone does not
        visit.page.keyboard.press("Space")
    assert chooser.value.is_multiple()


def test_a_screen_reader_finds_names_roles_and_status(visit: Visit, photos: dict[str, bytes]) -> None:
    page = visit.page
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("status").get_attribute("aria-live") == "polite"
    visit.drop(("cat.jpg", photos["cat.jpg"]))
    expect(page.get_by_role("status")).to_contain_text("cat.jpg: ", timeout=WAIT)
    expect(page.get_by_role("list", name="Results").get_by_role("listitem").first).to_be_visible()
    assert page.get_by_role("heading", level=1).count() == 1
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, button, a')].filter(each => !(each.ariaLabel || each.textContent.trim()"
        " || each.labels?.length)).length"
    )
    assert unnamed == 0
    assert page.locator(".track").first.get_attribute("aria-hidden") == "true"


# The lowest contrast of any text with its background, by WCAG 2's formula.
CONTRAST = """() => {
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const behind = (node) => {
        for (; node; node = node.parentElement) {
            const colour = parse(getComputedStyle(node).backgroundColor);
            if (colour.length === 3 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let least = [21, ""];
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.matches("script, noscript")) continue;
        const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < least[0]) least = [ratio, walker.currentNode.data];
    }
    return least;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_the_page_is_readable_in_both_colour_schemes_and_at_any_width(
    browser: Browser, server: ServerProcess, photos: dict[str, bytes], screenshots: Path, scheme: Any, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    visit = Visit(page, server.url)
    visit.drop(*photos.items(), ("a" * 90 + ".jpg", photos["cat.jpg"]), ("half.jpg", TRUNCATED))
    expect(page.get_by_role("status")).to_have_text("4 of 5 pictures classified, 1 failed.", timeout=WAIT)
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=screenshots / f"page-{scheme}-{width}.png", full_page=True)
    assert visit.complaints == []
    page.close()


def test_a_phone_may_take_a_photo(browser: Browser, server: ServerProcess, photos: dict[str, bytes]) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    visit = Visit(page, server.url)
    photo = page.get_by_label("Take a photo")
    expect(photo).to_be_attached()
    assert photo.get_attribute("capture") == "environment"
    photo.set_input_files({"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": photos["coffee.jpg"]})
    expect(visit.card("photo.jpg").locator("ol.labels li")).to_have_count(5, timeout=WAIT)
    page.close()


def test_the_api_documentation_loads_without_errors(browser: Browser, server: ServerProcess) -> None:
    page = browser.new_page()
    visit = Visit(page, f"{server.url}/docs")
    page.get_by_role("link", name="Prediction").first.click()
    assert page.url.endswith("#Prediction")
    assert page.evaluate(CONTRAST)[0] >= 4.5
    assert visit.complaints == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_the_api_documentation_is_readable_in_both_colour_schemes_and_at_any_width(
    browser: Browser, server: ServerProcess, screenshots: Path, scheme: Any, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    visit = Visit(page, f"{server.url}/docs")
    for each in page.locator("details").all():
        each.evaluate("each => { each.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    page.screenshot(path=screenshots / f"docs-{scheme}-{width}.png", full_page=True)
    assert visit.complaints == []
    page.close()


def test_the_screenshot_of_the_readme(visit: Visit, photos: dict[str, bytes], screenshots: Path) -> None:
    visit.page.set_viewport_size({"width": 1000, "height": 700})
    visit.drop(*photos.items(), ("notes.txt", b"hello"))
    expect(visit.page.get_by_role("status")).to_have_text("3 of 4 pictures classified, 1 failed.", timeout=WAIT)
    visit.page.screenshot(path=screenshots / "page.png")
    assert (screenshots / "page.png").stat().st_size > 20_000
