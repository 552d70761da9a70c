"""A setting's text → its value. Each function here raises `ValueError` saying what is allowed."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

Parser = Callable[[str], Any]
_MAX_LIST: Final = 4096


def integer(low: int, high: int) -> Parser:
    """A whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,20}", text, re.ASCII) or not low <= int(text) <= high:
            raise ValueError(f"not a whole number from {low} to {high}")
        return int(text)

    return parse


def one_of(*allowed: str) -> Parser:
    """One of these words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"not one of {', '.join(allowed)}")
        return text

    return parse


def on_off(text: str) -> bool:
    """On or off."""
    return bool(one_of("on", "off")(text) == "on")


def non_empty(text: str) -> str:
    """Any text but none, and none that the system takes to end earlier."""
    if not text:
        raise ValueError("empty")
    if "\0" in text:
        raise ValueError("there is a NUL in it")
    return text


def path_of(text: str) -> Path:
    """A path, which may be of nothing."""
    return Path(non_empty(text))


def origins(text: str) -> tuple[str, ...]:
    """Origins of web pages, separated by commas or spaces."""
    found = words(text)
    for origin in found:
        if not re.fullmatch(r"https?://[^/\s]+", origin):
            raise ValueError(f"{origin!r} is no origin such as https://example.org")
    return found


def host_names(text: str) -> tuple[str, ...]:
    """Names and addresses of hosts without port, `*.example.org` for all below a name, or `*` for any."""
    found = words(text)
    for name in found:
        if name != "*" and not re.fullmatch(r"(\*\.)?[A-Za-z0-9_-][A-Za-z0-9_.-]{0,252}|[0-9A-Fa-f:.]{2,45}", name):
            raise ValueError(f"{name!r} is not a host such as example.org or *.example.org, without scheme and port")
    return found


def provider_names(text: str) -> tuple[str, ...]:
    """Execution providers, at least one, as they are written in onnxruntime or short: cuda, cpu."""
    found = tuple(word.lower().removesuffix("executionprovider") for word in words(text))
    if not found:
        raise ValueError("empty")
    for name in found:
        if not re.fullmatch(r"[a-z0-9]+", name):
            raise ValueError(f"{name!r} is no execution provider such as cuda or cpu")
    return found


def words(text: str) -> tuple[str, ...]:
    """Whatever commas and spaces separate, in a list that is not endless."""
    if len(text) > _MAX_LIST:
        raise ValueError(f"longer than {_MAX_LIST} characters")
    return tuple(part for part in re.split(r"[,\s]+", text) if part)
