"""Log records → lines on standard error: text for a person at a terminal, else one JSON object a line.

A record's own fields travel in `extra={"fields": {...}}`. No error leaves this module.
"""

import json
import logging
import sys
import warnings
from datetime import UTC, datetime

from serve.printable import printable

_encode = json.JSONEncoder(default=str).encode  # json.dumps would make an encoder for each line


class JsonFormatter(logging.Formatter):
    """One JSON object a record; line breaks inside values are escaped, so a record is always one line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


class TextFormatter(logging.Formatter):
    """Time, message, and for a request what a person wants to see of it."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{datetime.fromtimestamp(record.created):%H:%M:%S} {printable(record.getMessage())}"
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
