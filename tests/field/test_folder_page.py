"""`classify --html`: what is in the page and how large it gets; tests/browser looks at it in a browser."""

import base64
import codecs
import errno
import io
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

from serve.config.settings import ROOT, Config
from serve.errors import OutputError
from serve.files.page import Page
from serve.files.thumbnails import SIDE, Thumbnails
from serve.imaging.normalise import as_pixels
from serve.model.classifier import Classifier
from tests.serve.conftest import PHOTOS
from tests.serve.test_classify import COMMAND, classify

CAT = PHOTOS / "cat.jpg"


class Parsed(HTMLParser):
    """The page as a browser parses it.

    Attributes:
        tags: Each start tag with its attributes.
        texts: The texts of style and script elements, by their tag and id.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag in ("script", "style"):
            name = f"{tag} {attributes.get('id', '')}".strip()
            self.texts[name] = self.texts.get(name, "") + data


def shown(page: Path) -> list[dict[str, Any]]:
    text = page.read_text()
    assert text.endswith("</html>\n")
    return [json.loads(line) for line in Parsed(text).texts["script records"].splitlines() if line]


def test_each_file_has_its_labels_a_thumbnail_and_a_link(tmp_path: Path) -> None:
    page = tmp_path / "pages" / "page.html"
    page.parent.mkdir()
    (tmp_path / "ü #1?.jpg").symlink_to(CAT)
    status, _, error = classify(tmp_path / "ü #1?.jpg", PHOTOS, "none.jpg", "--html", page, "--top-k", 2)
    found = shown(page)
    assert (status, f"page: {page}\n" in error) == (1, True)
    assert [Path(each["name"]).name for each in found] == [
        "ü #1?.jpg",
        "cat.jpg",
        "coffee.jpg",
        "rocket.jpg",
        "none.jpg",
    ]
    for each in found[:-1]:
        assert (page.parent / os.fsdecode(unquote_to_bytes(each["link"]))).exists()
        assert len(each["labels"]) == 2
        assert each["labels"][0][1] >= each["labels"][1][1] > 0
        image = Image.open(io.BytesIO(base64.b64decode(each["thumbnail"])))
        assert (image.format, image.size) == ("JPEG", (SIDE, SIDE))
    assert found[0]["link"] == "../%C3%BC%20%231%3F.jpg"
    assert found[-1] == {
        "name": "none.jpg",
        "link": os.path.relpath(ROOT / "none.jpg", page.parent),
        "problem": "There is no such file.",
    }


def test_the_page_asks_for_nothing_and_runs_nothing_but_its_own_script(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert classify(CAT, "--html", page)[0] == 0
    parsed = Parsed(page.read_text())
    policy = dict(
        part.strip().split(" ", 1)
        for tag, attributes in parsed.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
        for part in (attributes["content"] or "").split(";")
    )
    assert (policy["default-src"], policy["img-src"], policy["form-action"], policy["base-uri"]) == (
        "'none'",
        "data:",
        "'none'",
        "'none'",
    )
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["style-src"])
    addresses = [
        attributes[name] or "" for _, attributes in parsed.tags for name in ("src", "href") if name in attributes
    ]
    assert all(address.startswith("data:") for address in addresses)
    assert not any(name.startswith("on") or name == "style" for _, attributes in parsed.tags for name in attributes)


def test_no_name_can_leave_its_place_in_the_page(tmp_path: Path) -> None:
    names = [
        "</script><script>alert(1)<!--.jpg",
        "javascript:alert(1).jpg",
        '" onerror="alert(1).jpg',
        "<img src=x>&amp;.jpg",
        "a\u2028b\n\x1b[2J\u202egpj.jpg",
        os.fsdecode(b"\xff\xfe.jpg"),
    ]
    folder = tmp_path / "folder"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(CAT)
    page = tmp_path / "page.html"
    assert classify(folder, "--html", page)[0] == 0
    parsed = Parsed(page.read_text())
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert "img" not in [tag for tag, _ in parsed.tags]
    found = shown(page)
    assert len(found) == len(names)
    for each in found:
        assert each["name"].isprintable()
        assert re.fullmatch(r"folder/[\w.%/~-]+", each["link"])
        assert (tmp_path / os.fsdecode(unquote_to_bytes(each["link"]))).exists()


def test_the_page_of_an_interrupted_run_is_whole_and_continued(tmp_path: Path) -> None:
    folder, output, page = tmp_path / "many", tmp_path / "output.jsonl", tmp_path / "page.html"
    folder.mkdir()
    for number in range(2000):
        (folder / f"{number:04}.jpg").symlink_to(CAT)
    command = [*COMMAND, str(folder), "--output", str(output), "--html", str(page), "--resume"]
    for number in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        size = output.stat().st_size if output.exists() else 0
        give_up = time.monotonic() + 60
        while not output.exists() or output.stat().st_size <= size:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=60)
        if number == signal.SIGINT:
            assert 0 < len(output.read_text().splitlines()) <= len(shown(page)) < 2000
    for path in list(folder.iterdir())[300:]:
        if path.name > f"{len(output.read_text().splitlines()):04}.jpg":
            path.unlink()
    assert classify(folder, "--output", output, "--html", page, "--resume")[0] == 0
    assert [each["name"] for each in shown(page)] == sorted(map(str, folder.iterdir()))
    whole = tmp_path / "whole.html"
    assert classify(folder, "--html", whole)[0] == 0
    assert whole.read_bytes() == page.read_bytes()


def test_a_page_that_is_not_the_outputs_is_left_as_it_was(tmp_path: Path) -> None:
    output, page, other = tmp_path / "output.jsonl", tmp_path / "page.html", tmp_path / "other.html"
    coffee = PHOTOS / "coffee.jpg"
    assert classify(CAT, coffee, "--output", output, "--html", page)[0] == 0
    assert classify(coffee, CAT, "--html", other)[0] == 0
    for made, words in (
        (b"my thesis", "is not one of this version and model; choose another --html"),
        (page.read_bytes().replace(b"tiny", b"huge"), "is not one of this version and model; choose another --html"),
        (other.read_bytes(), "has other files than the output; choose another --html"),
        (
            page.read_bytes().split(b'{"name"')[0],
            "has fewer records than the output that --resume continues",
        ),
        (b"", "has fewer records than the output that --resume continues"),
    ):
        changed, before = tmp_path / "changed.html", output.read_bytes() + b'{"file": "half'
        output.write_bytes(before)
        changed.write_bytes(made)
        status, printed, error = classify(CAT, coffee, "--output", output, "--html", changed, "--resume")
        assert (status, printed, len(error.splitlines())) == (2, "", 1), error
        assert error.startswith(f"serve: page {changed} {words}"), error
        assert (changed.read_bytes(), output.read_bytes()) == (made, before)
    status, _, error = classify(CAT, "--html", page)
    assert (status, error) == (
        2,
        f"serve: output file {page} is not empty; continue it with --resume, or choose another --html\n",
    )


def test_the_page_and_the_output_are_two_files_and_neither_is_classified(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    status, _, error = classify(CAT, "--html", page, "--output", tmp_path / "." / "page.html")
    assert (status, error) == (
        2,
        f"serve: --html and --output are the same file, {page}; choose another for one of them\n",
    )
    (tmp_path / "cat.jpg").symlink_to(CAT)
    status, _, error = classify(tmp_path, "--html", page, "--output", tmp_path / "output.jsonl")
    assert (status, len(shown(page)), "1 file in" in error) == (0, 1, True)


def test_a_full_disk_is_told_with_the_page() -> None:
    status, _, error = classify(CAT, "--html", "/dev/full")
    assert (status, error.splitlines()[-1]) == (2, "serve: page /dev/full: no space left on device")


def test_the_page_is_bounded_however_many_images_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.files.page._MAX_BYTES", 100_000)
    path = tmp_path / "page.html"
    entry = {"label": "cat", "probability": 0.5}
    with path.open("w") as file, Page(file, path, "tiny, fp32", 0.25) as page:
        page.start(0, None)
        for number in range(1000):
            page.add({"file": f"/{number}.jpg", "top_k": [entry] * 5}, bytes(1000))
    found = shown(path)
    with_thumbnail = sum("thumbnail" in each for each in found)
    assert len(found) == 1000
    assert 50 < with_thumbnail < 100
    assert page.report() == [f"page: {path}; {1000 - with_thumbnail} images have no thumbnail, to keep the page small"]
    assert path.stat().st_size < 400_000
    assert 'value="25"' in path.read_text()


def test_ten_thousand_thumbnails_of_noise_fit(classifier: Classifier, config: Config) -> None:
    """Noise is what JPEG encodes worst."""
    spec = classifier.preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (spec.crop, spec.crop, 3), dtype=np.uint8)
    thumbnails = Thumbnails(classifier, config)
    made = thumbnails.make(pixels.tobytes())
    thumbnails.close()
    assert 10_000 * (len(base64.b64encode(made)) + 300) < 70 * 2**20


@pytest.mark.parametrize("sandbox", ["auto", "off"])
def test_a_thumbnail_shows_what_the_model_saw(classifier: Classifier, config: Config, sandbox: str) -> None:
    prepared = classifier.prepare(classifier.open(CAT.read_bytes(), 1))
    thumbnails = Thumbnails(classifier, replace(config, sandbox=sandbox, max_pixels=1, max_request_bytes=1))
    made = thumbnails.make(prepared.pixels)
    thumbnails.close()
    seen = np.asarray(Image.open(io.BytesIO(made)), float)
    expected = Image.fromarray(as_pixels(prepared.pixels, classifier.preprocessing)[0]).resize((SIDE, SIDE))
    assert np.abs(seen - np.asarray(expected, float)).mean() < 6
    assert made.endswith(b"\xff\xd9")


def test_thumbnails_change_no_record(tmp_path: Path) -> None:
    _, plain, _ = classify(PHOTOS)
    _, with_page, _ = classify(PHOTOS, "--html", tmp_path / "page.html")
    assert with_page == plain


def test_a_thumbnail_that_fails_is_left_out(
    classifier: Classifier, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = classifier.prepare(classifier.open(CAT.read_bytes(), 1))
    thumbnails = Thumbnails(classifier, config)
    monkeypatch.setattr("serve.files.thumbnails._bmp", lambda _: b"BM, but no image")
    assert thumbnails.make(prepared.pixels) == b""
    thumbnails.close()


def test_thumbnails_that_fail_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    picture = {"file": "/cat.jpg", "top_k": [{"label": "cat", "probability": 0.5}]}
    with path.open("w") as file, Page(file, path, "tiny, fp32", 0) as page:
        page.start(0, None)
        page.add(picture, b"\xff\xd8")
        page.add({"file": "/x.txt", "status": 415, "detail": "No image."}, b"")
        assert page.report() == [f"page: {path}"]
        page.add(picture, b"")
        assert page.report() == [f"page: {path}; 1 image has no thumbnail, because it could not be made"]
        page.add(picture, b"")
        assert page.report() == [f"page: {path}; 2 images have no thumbnail, because it could not be made"]
    assert ["thumbnail" in each for each in shown(path)] == [True, False, False, False]


def test_a_run_that_ends_with_an_error_leaves_a_whole_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    listed = codecs.BOM_UTF16_LE + f"{CAT}\n".encode("utf-16-le") + b"x"
    command = [*COMMAND, "-", "--html", str(page)]
    done = subprocess.run(command, cwd=ROOT, input=listed, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.decode().splitlines()[-1]) == (
        2,
        "serve: standard input: the list has the byte order mark of UTF-16, but is not in it",
    )
    assert [each["name"] for each in shown(page)] == [str(CAT)]


def test_an_error_of_the_page_does_not_hide_the_first_one(tmp_path: Path) -> None:
    class Full(io.StringIO):
        def readable(self) -> bool:
            return False

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "page.html"
    with pytest.raises(OutputError, match=r"page .*: no space left on device"), Page(Full(), path, "tiny", 0) as page:
        page.start(0, None)
    with pytest.raises(ZeroDivisionError), Page(Full(), path, "tiny", 0) as page:
        page.start(0, None)
        raise ZeroDivisionError


def test_a_page_is_continued_with_another_least_probability(tmp_path: Path) -> None:
    output, page, whole = tmp_path / "output.jsonl", tmp_path / "page.html", tmp_path / "whole.html"
    command = [PHOTOS, "--output", output, "--html", page]
    assert classify(*command)[0] == 0
    status, _, error = classify(*command, "--resume", "--min-probability", "0.25")
    assert (status, f"page: {page}\n" in error) == (0, True), error
    assert classify(PHOTOS, "--html", whole, "--min-probability", "0.25")[0] == 0
    assert page.read_bytes() == whole.read_bytes()


def test_a_model_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    with path.open("w") as file, Page(file, path, "{{records}} <b>{{least}}", 0.25) as page:
        page.start(0, None)
    assert shown(path) == []
    assert "Labelled by {{records}} &lt;b&gt;{{least}}." in path.read_text()


def test_a_run_that_is_refused_leaves_no_empty_file(tmp_path: Path) -> None:
    output, page, full = tmp_path / "output.jsonl", tmp_path / "page.html", tmp_path / "full.html"
    full.write_text("mine")
    assert classify(CAT, "--output", output, "--html", full)[0] == 2
    assert not output.exists()
    assert classify(CAT, "--output", output)[0] == 0
    status, _, error = classify(CAT, "--output", output, "--html", page, "--resume")
    assert (status, "has fewer records than the output" in error) == (2, True)
    assert not page.exists()
    assert full.read_text() == "mine"


def test_an_empty_file_that_was_there_stays_when_a_run_is_refused(tmp_path: Path) -> None:
    output, full = tmp_path / "output.jsonl", tmp_path / "full.html"
    output.touch()
    full.write_text("mine")
    assert classify(CAT, "--output", output, "--html", full)[0] == 2
    assert output.exists()
