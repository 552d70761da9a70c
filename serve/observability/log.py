"""Formats log records for standard error: text on a terminal, otherwise one JSON object per line.

A record's own fields are passed in `extra={"fields": {...}}`. Each long field is cut, to at most 2 KB of JSON, so that
clients can't fill the log.
"""

import json
import logging
import sys
import threading
import time
import warnings
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Final

from serve.observability.error_stream import ErrorStream
from serve.printable import printable, shortened

_encode = json.JSONEncoder(default=str).encode  # json.dumps would create an encoder for each line
# Characters of a field. JSON may need twelve bytes for a character that is not ASCII.
_MAX_CHARACTERS: Final = 1000
_MAX_SPECIAL_CHARACTERS: Final = 160
# Lines of a traceback; the last ones are kept, because they say most.
_MAX_LINES: Final = 60

_Error = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


# Attributes of a record that the formats of others may name.
_NOT_SHOWN: Final = dict.fromkeys(("pathname", "filename", "module", "funcName", "threadName", "processName"), "") | (
    dict.fromkeys(("lineno", "thread", "process", "msecs", "relativeCreated"), 0)
)


class _Record(logging.LogRecord):
    """A record without what no line shows, such as its file and thread, which takes as long as the rest to look up."""

    def __init__(
        self,
        name: str,
        level: int,
        pathname: str,
        lineno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        sinfo: str | None = None,
        **_: object,
    ) -> None:
        self.__dict__.update(_NOT_SHOWN)
        self.name, self.levelno, self.levelname = name, level, logging.getLevelName(level)
        self.msg, self.args = msg, args
        self.exc_info, self.exc_text, self.stack_info = exc_info, None, sinfo
        self.created = time.time()


class _Handler(logging.Handler):
    """Writes to standard error as it is set at the start, without a lock; an `ErrorStream` has its thread format it."""

    def __init__(self) -> None:
        super().__init__()
        stream: Any = sys.stderr
        self._write = stream.write_later if isinstance(stream, ErrorStream) else lambda line: stream.write(line())

    def handle(self, record: logging.LogRecord) -> bool:
        try:
            self._write(partial(self._line, record))
        except Exception:  # such as a stream that is closed
            self.handleError(record)
        return True

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return f"{self.format(record)}\n"
        except Exception:  # such as a library's message whose arguments don't fit
            self.handleError(record)
            return ""


class _Formatter(logging.Formatter):
    def formatException(self, ei: _Error) -> str:  # noqa: N802  the name in logging
        lines = super().formatException(ei).split("\n")
        cut = [f"… ({len(lines) - _MAX_LINES} more lines)"] if len(lines) > _MAX_LINES else []
        return "\n".join(printable(shortened(line, _MAX_CHARACTERS)) for line in [*cut, *lines[-_MAX_LINES:]])


class JsonFormatter(_Formatter):
    """One JSON object per record. Line breaks in values are escaped, so a record is always one line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        for name, value in line.items():
            if isinstance(value, str) and len(value) > _MAX_SPECIAL_CHARACTERS:
                line[name] = _cut(value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


class TextFormatter(_Formatter):
    """Time, message and, for a request, its sizes, duration and id."""

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
    """Logs records of at least `level` to standard error.

    Args:
        log_format: text, json, or auto, which is text on a terminal and otherwise json.
        level: name of a logging level.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # about damaged images, which the responses report
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler = _Handler()
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging._srcfile = None  # no line shows the caller (Python's logging documentation, "Optimization")
    logging.setLogRecordFactory(_Record)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def log_uncaught_errors() -> None:
    """Logs warnings and uncaught errors, which Python would print to standard error."""
    logging.captureWarnings(True)
    sys.excepthook = _log_error
    threading.excepthook = lambda args: _log_error(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _log_error(args.exc_type, args.exc_value, args.exc_traceback)


def _log_error(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if kind is not SystemExit:  # a thread may end this way
        logging.getLogger("serve.error").error("unexpected error", exc_info=(kind, error, trace))  # type: ignore[arg-type]


def _cut(text: str) -> str:
    return shortened(text, _MAX_CHARACTERS if text.isascii() and text.isprintable() else _MAX_SPECIAL_CHARACTERS)
