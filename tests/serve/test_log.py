"""Each log record is one line of limited length."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image, TiffImagePlugin
from starlette.testclient import TestClient

from serve.observability.log import JsonFormatter, TextFormatter, set_up_logging


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("serve.access", logging.INFO, "file.py", 1, message, (), None)
    if fields:
        made.fields = fields
    return made


def test_json_lines_carry_the_fields_and_cannot_be_forged() -> None:
    line = JsonFormatter().format(record("GET /\n{}", request_id="a\nb", ms=1.5))
    assert "\n" not in line
    parsed = json.loads(line)
    assert parsed["level"] == "info"
    assert parsed["logger"] == "serve.access"
    assert (parsed["message"], parsed["request_id"], parsed["ms"]) == ("GET /\n{}", "a\nb", 1.5)


def test_text_lines_are_short_and_cannot_be_forged() -> None:
    line = TextFormatter().format(record("GET /a\nb\x1b[31m", request_id="abc", bytes_in=10, bytes_out=20, ms=1.5))
    assert "\n" not in line
    assert "\x1b" not in line
    assert line.endswith("10 bytes in, 20 out, 1.5 ms  abc")


@pytest.mark.parametrize("path", ["/" + "a" * 60_000, "/" + "\x1b[31m" * 12_000, "/" + "\U0001f408" * 60_000])
def test_a_long_request_line_is_cut_in_the_log(path: str) -> None:
    made = record(f"GET {path} 404", request_id="abc", path=path, bytes_in=1, bytes_out=2, ms=1.5)
    for line in (JsonFormatter().format(made), TextFormatter().format(made)):
        assert len(line) < 4500
        assert "\x1b" not in line
    parsed = json.loads(JsonFormatter().format(made))
    for text, whole in ((parsed["message"], f"GET {path} 404"), (parsed["path"], path)):
        beginning, _, rest = text.partition("… (")
        count, _, end = rest.partition(" more characters) …")
        assert whole.startswith(beginning)
        assert whole.endswith(end)
        assert len(whole) == len(beginning) + int(count) + len(end)
    assert " 404  1 bytes in" in TextFormatter().format(made)


def test_ordinary_lines_are_not_cut() -> None:
    path = "/" + "a" * 900
    made = record(f"GET {path} 404", request_id="abc", path=path, bytes_in=1, bytes_out=2, ms=1.5)
    assert json.loads(JsonFormatter().format(made))["path"] == path
    assert f"GET {path} 404 " in TextFormatter().format(made)


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_a_traceback_has_no_escapes_and_a_length_limit(formatter: logging.Formatter) -> None:
    def fail(depth: int) -> None:
        if not depth:
            raise ValueError("\x1b[31m\udc80\r" + "x" * 60_000)
        (lambda: fail(depth - 1))()  # alternating frames, or Python would fold the repetition

    made = record("unexpected error")
    try:
        fail(300)
    except ValueError:
        made.exc_info = sys.exc_info()
    line = formatter.format(made)
    assert line.encode()
    assert "\x1b" not in line
    assert "\r" not in line
    assert "x1b[31m" in line
    assert "more lines)" in line
    assert len(line) < 10_000


@contextmanager
def logging_to(stream: io.StringIO, log_format: str, level: str) -> Iterator[None]:
    """Sets up logging to `stream` as standard error; restores the root logger afterwards."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.stderr", stream)
        set_up_logging(log_format, level)
        yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])


@pytest.mark.parametrize(("terminal", "first"), [(True, "0123456789"), (False, "{")])
def test_auto_is_text_on_a_terminal_and_json_elsewhere(
    terminal: bool, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    with logging_to(stream, "auto", "info"):
        logging.getLogger("serve").info("hello")
    assert stream.getvalue()[0] in first


@pytest.mark.parametrize(("level", "lines"), [("info", 1), ("warning", 0)])
def test_a_request_is_a_line_unless_the_level_hides_it(client: TestClient, level: str, lines: int) -> None:
    stream = io.StringIO()
    with logging_to(stream, "json", level):
        client.get("/nothing")
    assert stream.getvalue().count("GET /nothing 404") == lines


def test_a_damaged_image_logs_no_errors() -> None:
    """Pillow logs some damaged images as errors, which would trigger operators' alerts."""
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "TIFF", tiffinfo={TiffImagePlugin.SAMPLESPERPIXEL: 3})
    count = b"\x15\x01\x03\x00\x01\x00\x00\x00"  # the entry SamplesPerPixel: one SHORT
    assert picture.getvalue().count(count + b"\x03") == 1
    stream = io.StringIO()
    with logging_to(stream, "json", "info"), pytest.raises(SyntaxError):
        TiffImagePlugin.TiffImageFile(io.BytesIO(picture.getvalue().replace(count + b"\x03", count + b"\x09")))
    assert stream.getvalue() == ""


def test_a_message_whose_arguments_do_not_fit_raises_nothing() -> None:
    stream = io.StringIO()
    with logging_to(stream, "json", "info"):
        logging.getLogger("library").info("%d pictures", "two")
        assert "Logging error" in stream.getvalue()
