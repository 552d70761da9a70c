"""Log records → lines on standard error: text for a person at a terminal, else one JSON object a line.

A record's own fields travel in `extra={"fields": {...}}`. What is long is cut, field by field, to 2 KB of JSON, so that
no client fills a log. No error leaves this module.
"""

import json
import logging
import sys
import threading
import warnings
from datetime import UTC, datetime
from types import TracebackType
from typing import Final

from serve.printable import printable, shortened

_encode = json.JSONEncoder(default=str).encode  # json.dumps would make an encoder for each line
# Characters of a field. JSON may take twelve bytes for one that is not ASCII.
_MOST_CHARACTERS: Final = 1000
_MOST_SPECIAL_CHARACTERS: Final = 160
# Of a traceback the end says most.
_MOST_LINES: Final = 60

_Error = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class _Formatter(logging.Formatter):
    def formatException(self, ei: _Error) -> str:  # noqa: N802  logging's own name
        lines = super().formatException(ei).split("\n")
        cut = [f"… ({len(lines) - _MOST_LINES} more lines)"] if len(lines) > _MOST_LINES else []
        return "\n".join(printable(shortened(line, _MOST_CHARACTERS)) for line in [*cut, *lines[-_MOST_LINES:]])


class JsonFormatter(_Formatter):
    """One JSON object a record; line breaks inside values are escaped, so a record is always one line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        for name, value in line.items():
            if isinstance(value, str) and len(value) > _MOST_SPECIAL_CHARACTERS:
                line[name] = _cut(value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


class TextFormatter(_Formatter):
    """Time, message, and for a request what a person wants to see of it."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{datetime.fromtimestamp(record.created):%H:%M:%S} {printable(_cut(record.getMessage()))}"
        if record.levelno >= logging.WARNING:
            line = f"{line} [{record.levelname.lower()}]"
        fields = getattr(record, "fields", {})
        if "ms" in fields:
            line += (
                f"  {fields['bytes_in']} bytes in, {fields['bytes_out']} out, {fields['ms']} ms  {fields['request_id']}"
            )
        elif "request_id" in fields:
            line += f"  {fields['request_id']}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def set_up_logging(log_format: str, level: str) -> None:
    """Send all records of at least `level` to standard error. log_format: text, json, or auto (text on a terminal)."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for library in ("PIL", "python_multipart"):  # on odd pictures and malformed bodies, of which the answers tell
        logging.getLogger(library).setLevel(logging.CRITICAL)
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def log_the_unforeseen() -> None:
    """Have the log tell of what Python would write to standard error by itself: warnings, and errors nobody caught."""
    logging.captureWarnings(True)
    sys.excepthook = _log_error
    threading.excepthook = lambda args: _log_error(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _log_error(args.exc_type, args.exc_value, args.exc_traceback)


def _log_error(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if kind is not SystemExit:  # by which a thread may end as it likes
        logging.getLogger("serve.error").error("unforeseen error", exc_info=(kind, error, trace))  # type: ignore[arg-type]


def _cut(text: str) -> str:
    return shortened(text, _MOST_CHARACTERS if text.isascii() and text.isprintable() else _MOST_SPECIAL_CHARACTERS)
