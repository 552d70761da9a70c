"""Reads the TOML settings file into the text that each entry would have as a flag."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from serve.config.regular_file import read_text
from serve.errors import ConfigError
from serve.printable import shortened

MAX_BYTES: Final = 2**15  # tomllib takes seconds for larger files in the worst case, keys of ten thousand parts
_MAX_QUOTED: Final = 200  # characters of a value in an error message


def read_settings_file(
    named: str | None, default: Path | None, defaults: Mapping[str, Any]
) -> tuple[Path | None, dict[str, str]]:
    """Reads the settings file; only the default file may be missing.

    Args:
        named: the path given by the operator, None for the default file.
        default: the file to read if none is named, None for no file.
        defaults: the default of each setting, by name.

    Returns:
        The path and the entries, each as it would be written in a flag.

    Raises:
        ConfigError: the file or an entry is invalid; the message names both.
    """
    path = Path(named) if named else default
    if path is None or named == os.devnull:
        return path, {}
    try:
        entries = tomllib.loads(read_text(path, MAX_BYTES))
    except OSError as error:
        if named is None and isinstance(error, FileNotFoundError):
            return path, {}
        raise ConfigError(f"settings file {path}: {(error.strerror or 'unreadable').lower()}") from error
    except ValueError as error:
        raise ConfigError(f"settings file {path} is not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"settings file {path} is nested too deeply") from error
    unknown = entries.keys() - defaults.keys()
    if unknown:
        raise ConfigError(f"settings file {path}: unknown setting {min(unknown)}; --help lists the settings")
    texts = {}
    for name, value in entries.items():
        text = _as_text(value, defaults[name])
        if text is None:
            raise ConfigError(f"settings file {path}: {name}={quoted(value)} has the wrong type or is too large")
        texts[name] = text
    return path, texts


def _as_text(value: Any, default: Any) -> str | None:
    """Converts a TOML value to the text of a flag; None if its type does not fit the setting."""
    match value, default:
        case bool(), bool():
            return "on" if value else "off"
        case list(), tuple() if all(isinstance(each, str) for each in value):
            return ",".join(value)
        case ((bool() | list() | dict()), _):
            return None
        case int(), _ if abs(value) >= 2**63:  # not valid TOML, though Python reads it
            return None
        case _:
            return str(value)


def quoted(value: Any) -> str:
    """Formats a value for an error message."""
    try:
        return shortened(repr(value), _MAX_QUOTED)
    except (ValueError, RecursionError):  # thousands of digits, deeply nested tables
        return f"this {type(value).__name__}"
