"""The page that `classify --html` writes, opened as a file: what it shows, filters and asks for."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import PYTHON, Visit
from tests.browser.test_page import CONTRAST
from tests.server_process import ROOT

PHOTOS = ROOT / "tests" / "data" / "photos"
MANY = 10_000
# Milliseconds for a filter or order of ten thousand pictures, with its first cards laid out.
QUICK = 500
EVIL = "</script><script>ran=1<!--<img src=x onerror='ran=1'>.jpg"


def classified(page: Path, *arguments: object) -> Path:
    """Writes a page, with the embedded model unless the arguments name another."""
    command = [
        str(PYTHON),
        "-m",
        "serve",
        "classify",
        "--model",
        "efficientnet_lite0",
        *map(str, arguments),
        "--html",
        str(page),
        "--output",
        "/dev/null",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stderr
    return page


# Writes a page of so many records with the real thumbnail of each photograph, by the code of the command.
MAKE_MANY = """
import base64, json, sys
from pathlib import Path
from serve.files.page import Page
thumbnails = [base64.b64decode(each) for each in json.loads(sys.stdin.read())]
path = Path(sys.argv[1])
with path.open("w") as file:
    with Page(file, path, "densenet121, int8", 0) as page:
        page.start(0, None)
        for number in range(int(sys.argv[2])):
            label = lambda rank: f"label_{(number * 7 + rank) % 1000}"
            entries = [{"label": label(rank), "probability": 1 / (2 + number % 97 + rank)} for rank in range(5)]
            path = f"/photos/day {number // 500}/IMG_{number}.jpg"
            page.add({"file": path, "top_k": entries}, thumbnails[number % 3])
        for number in range(40):
            page.add({"file": f"/photos/bad{number}.jpg", "status": 422, "detail": "It is damaged."}, b"")
"""


class Opened(Visit):
    """A page opened from the disk."""

    def __init__(self, page: Page, path: Path) -> None:
        super().__init__(page, path.as_uri())

    def names(self) -> list[str]:
        """Returns the file names of the cards that are shown, in order."""
        return [text.rsplit("/", 1)[-1] for text in self.page.locator(".card h3").all_text_contents()]

    def expect_count(self, count: str) -> None:
        expect(self.page.get_by_role("status")).to_have_text(f"{count} pictures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the photographs, a file that is none, and names that look like markup."""
    made = tmp_path_factory.mktemp("holiday")
    for photo in PHOTOS.glob("*.jpg"):
        (made / photo.name).symlink_to(photo)
    (made / EVIL).parent.mkdir(parents=True)
    (made / EVIL).write_bytes((PHOTOS / "coffee.jpg").read_bytes())
    (made / "notes.txt").write_text("hello")
    return made


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    return classified(folder / "page.html", folder)


@pytest.fixture(scope="module")
def many(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [line for line in small.read_text().splitlines() if line.startswith('{"name"')]
    thumbnails = [record["thumbnail"] for record in map(json.loads, lines) if "thumbnail" in record]
    path = tmp_path_factory.mktemp("many") / "page.html"
    command = [str(PYTHON), "-c", MAKE_MANY, str(path), str(MANY)]
    subprocess.run(command, cwd=ROOT, input=json.dumps(thumbnails[:3]), text=True, check=True)
    return path


@pytest.fixture
def opened(browser: Browser, small: Path) -> Iterator[Opened]:
    yield from visited(browser, small)


@pytest.fixture
def opened_many(browser: Browser, many: Path) -> Iterator[Opened]:
    yield from visited(browser, many)


def visited(browser: Browser, path: Path) -> Iterator[Opened]:
    """Opens the page; afterwards checks that it logged no error and loaded nothing but itself."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    made = Opened(page, path)
    yield made
    assert made.complaints == []
    assert {each for each in made.asked if not each.startswith("data:")} == {path.as_uri()}
    page.close()


def test_it_shows_each_picture_with_its_labels_and_leads_to_the_file(opened: Opened, folder: Path) -> None:
    page = opened.page
    opened.expect_count("4 of 4")
    expect(page.locator(".card")).to_have_count(4)
    cat = page.locator("li.card", has_text="cat.jpg")
    image = cat.locator("img")
    assert image.evaluate("each => each.complete && each.naturalWidth") == 128
    widths = [bar.bounding_box()["width"] for bar in cat.locator(".fill").all()]
    assert len(widths) == 5
    assert widths == sorted(widths, reverse=True)
    link = cat.locator("h3 a")
    assert link.get_attribute("href") == "cat.jpg"
    assert link.evaluate("each => each.href") == (folder / "cat.jpg").as_uri()
    assert (folder / "cat.jpg").exists()
    headings = page.locator("section h2").all_text_contents()
    assert len(headings) == len({text.rsplit(" ", 1)[0] for text in headings}) >= 2


def test_files_that_failed_are_listed_with_their_reason(opened: Opened) -> None:
    problems = opened.page.locator("#problems")
    expect(problems.locator("summary")).to_have_text("1 file could not be classified")
    problems.locator("summary").click()
    expect(problems.locator("li")).to_contain_text("notes.txt: The file is not an image in an accepted format")
    opened.page.get_by_label("Name or label").fill("cat.jpg")
    expect(problems).to_be_hidden()


def test_a_name_is_text_wherever_it_is_shown(opened: Opened) -> None:
    page = opened.page
    assert any(EVIL.rsplit("/", 1)[-1] == name for name in opened.names())
    assert page.evaluate("typeof ran") == "undefined"
    assert page.locator("img[src='x']").count() == 0


def test_words_a_label_and_a_probability_filter(opened: Opened) -> None:
    page = opened.page
    words, order, least = (page.get_by_label(name) for name in ("Name or label", "Order", "At least"))
    words.fill("ROCKET.jpg")
    opened.expect_count("1 of 4")
    assert opened.names() == ["rocket.jpg"]
    page.get_by_role("button", name="Show all").click()
    opened.expect_count("4 of 4")
    assert page.evaluate("document.activeElement.id") == "words"
    best = page.locator("#label option").nth(1).get_attribute("value")
    page.locator("#label").select_option(best)
    assert page.locator("section h2").count() == 1
    page.get_by_role("button", name="Show all").click()
    order.select_option("Least certain first")
    shares = [
        float(text.split()[0]) for text in page.locator(".card li:first-child > span:nth-child(2)").all_inner_texts()
    ]
    assert shares == sorted(shares)
    order.select_option("By name")
    assert opened.names()[1:] == ["cat.jpg", "coffee.jpg", "rocket.jpg"]
    least.fill("100")
    opened.expect_count("0 of 4")


def test_the_filter_stands_at_the_least_probability_at_first(browser: Browser, folder: Path, tmp_path: Path) -> None:
    page = browser.new_page()
    opened = Opened(page, classified(tmp_path / "page.html", folder, "--min-probability", 0.5))
    opened.expect_count("2 of 4")
    expect(page.get_by_label("At least 50 %")).to_have_value("50")
    page.get_by_role("button", name="Show all").click()
    opened.expect_count("4 of 4")
    assert opened.complaints == []
    page.close()


def test_ten_thousand_pictures_load_filter_and_sort_quickly(opened_many: Opened, many: Path) -> None:
    page = opened_many.page
    assert many.stat().st_size < 60e6
    opened_many.expect_count("10,000 of 10,000")
    assert page.evaluate("performance.now()") < 10_000
    assert page.locator(".card").count() <= 180
    milliseconds = page.evaluate(
        """() => {
            const spent = {};
            const set = (id, value, event) => {
                const began = performance.now(), control = document.getElementById(id);
                control.value = value;
                control.dispatchEvent(new Event(event));
                document.body.offsetHeight;
                spent[`${id}=${value}`] = performance.now() - began;
            };
            set("words", "label 7", "input");
            set("words", "", "input");
            for (const each of ["name", "sure", "unsure", "label"]) set("order", each, "change");
            set("least", 20, "input");
            return spent;
        }"""
    )
    assert max(milliseconds.values()) < QUICK, milliseconds
    expected = sum(1 / (2 + number % 97) >= 0.2 for number in range(MANY))
    opened_many.expect_count(f"{expected:,} of 10,000")
    page.get_by_label("Order").select_option("By name")
    assert opened_many.names()[:3] == ["IMG_0.jpg", "IMG_1.jpg", "IMG_2.jpg"]
    expect(page.locator("#failed")).to_have_text("40 files could not be classified")


def test_more_cards_appear_as_the_end_comes_near(opened_many: Opened) -> None:
    page = opened_many.page
    page.get_by_label("Order").select_option("By name")
    for count in (120, 240, 600):
        while page.locator(".card").count() < count:
            page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
            page.wait_for_timeout(50)
    names = opened_many.names()
    assert names == [f"IMG_{number}.jpg" for number in range(len(names))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_it_is_readable_in_both_colour_schemes_and_at_any_width(
    browser: Browser, small: Path, screenshots: Path, scheme: Any, width: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    visit = Opened(page, small)
    visit.expect_count("4 of 4")
    page.locator("summary").click()
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=screenshots / f"classified-{scheme}-{width}.png", full_page=True)
    assert visit.complaints == []
    page.close()


def test_it_works_with_the_keyboard_and_names_its_controls(opened: Opened) -> None:
    page, reached = opened.page, []
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["words", "label", "order", "least", "reset"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("End")
    opened.expect_count("0 of 4")
    for name in ("Name or label", "Label", "Order", "At least"):
        expect(page.get_by_label(name).first).to_be_visible()
    assert page.get_by_role("status").get_attribute("aria-live") == "polite"
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("heading", level=1).count() == 1


def test_the_screenshot_of_the_document(browser: Browser, screenshots: Path, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1160, "height": 400})
    made = classified(tmp_path / "page.html", PHOTOS.relative_to(ROOT), "Makefile")
    Opened(page, made).expect_count("3 of 3")
    page.get_by_label("Order").select_option("Most certain first")
    page.screenshot(path=screenshots / "folder.png")
    assert (screenshots / "folder.png").stat().st_size > 20_000
    page.close()
