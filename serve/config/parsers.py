"""Parsers from a setting's text to its value, and back; each raises `ValueError` with what is allowed."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from serve.config.origins import parse_origin

Parser = Callable[[str], Any]
FORMATS: Final = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")
_MAX_LIST: Final = 4096


def integer(low: int, high: int) -> Parser:
    """Returns a parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,20}", text, re.ASCII) or not low <= int(text) <= high:
            raise ValueError(f"not a whole number from {low} to {high}")
        return int(text)

    return parse


def one_of(*allowed: str) -> Parser:
    """Returns a parser that accepts these words only."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"not one of {', '.join(allowed)}")
        return text

    return parse


def on_off(text: str) -> bool:
    """Parses `on` or `off`."""
    return bool(one_of("on", "off")(text) == "on")


def non_empty(text: str) -> str:
    """Accepts any text that is not empty and has no NUL, at which the system would end it."""
    if not text:
        raise ValueError("must not be empty")
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


def file_path(text: str) -> Path:
    """Parses a path; whether the file exists is not checked."""
    return Path(non_empty(text))


def origins(text: str) -> tuple[str, ...]:
    """Parses origins of web pages, separated by commas or spaces, as browsers send them."""
    return tuple(map(parse_origin, split_list(text)))


def host_names(text: str) -> tuple[str, ...]:
    """Parses host names and addresses without port, `*.example.org` for all subdomains, or `*` for any host."""
    host = r"\*|(\*\.)?[A-Za-z0-9_-][A-Za-z0-9_.-]{0,252}|[0-9A-Fa-f:.]{2,45}"
    return _matching(split_list(text), host, "a host such as example.org or *.example.org, without scheme and port")


def formats(text: str) -> tuple[str, ...]:
    """Parses names of image formats, `all` for every one, or `none`."""
    found = tuple(word.lower() for word in split_list(text))
    if found in (("all",), ("none",)):
        return FORMATS if found == ("all",) else ()
    for name in found:
        if name not in FORMATS:
            raise ValueError(f"{name!r} is not one of {', '.join(FORMATS)}")
    return found


def split_list(text: str) -> tuple[str, ...]:
    """Splits a list at commas and spaces."""
    if len(text) > _MAX_LIST:
        raise ValueError(f"longer than {_MAX_LIST} characters")
    return tuple(part for part in re.split(r"[,\s]+", text) if part)


def format_value(value: Any) -> str:
    """Formats a setting's value as it is written in a flag; `none` if it is not set."""
    match value:
        case bool():
            return "on" if value else "off"
        case () | None:
            return "none"
        case tuple():
            return ",".join(value)
        case _:
            return str(value)


def _matching(entries: tuple[str, ...], pattern: str, what: str) -> tuple[str, ...]:
    """Returns the entries if each matches the pattern. what: what an entry should be, for the error message."""
    for entry in entries:
        if not re.fullmatch(pattern, entry):
            raise ValueError(f"{entry!r} is not {what}")
    return entries
