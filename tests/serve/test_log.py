"""Log lines are one line each, whatever is in them."""

import io
import json
import logging

import pytest

from serve.log import JsonFormatter, TextFormatter, set_up_logging


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


def test_text_lines_show_what_a_person_wants_and_cannot_be_forged() -> None:
    line = TextFormatter().format(record("GET /a\nb\x1b[31m", request_id="abc", bytes_in=10, bytes_out=20, ms=1.5))
    assert "\n" not in line
    assert "\x1b" not in line
    assert line.endswith("10 bytes in, 20 out, 1.5 ms  abc")


@pytest.mark.parametrize(("terminal", "first"), [(True, "0123456789"), (False, "{")])
def test_auto_is_text_on_a_terminal_and_json_elsewhere(
    terminal: bool, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stderr", stream)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        set_up_logging("auto", "info")
        logging.getLogger("serve").info("hello")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert stream.getvalue()[0] in first
