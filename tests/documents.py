"""Finds and runs the commands that the documents show.

A command stands in a block fenced as `sh`, or as `console` after `$ `. tests/serve/test_documents.py runs it, unless
the line above the block is one of these:

    <!-- not run: needs a Docker engine -->
    <!-- run by: tests/serve/test_first_minute.py -->

The lines after a command in a `console` block are its output. A `json` or `text` block directly after a `sh` block is
the output of that block's last command.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.server_process import ROOT

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "models/*.md", "deploy/**/*.md")
    for path in ROOT.glob(pattern)
)
_BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<mark>not run|run by): (?P<note>.+?) -->\n(?P=indent))?```(?P<language>\w*)\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_FIGURES = re.compile(r"^<!-- figures: .+? -->$.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:make|(?:\S*/)?python) [^`]+)`")
_FIGURE = re.compile(r"[0-9][0-9.,]*")
_SECONDS = 60.0
# JSON fields whose values depend on the model.
_OF_THE_MODEL = {"index", "imagenet_id", "label", "probability", "model"}


@dataclass(frozen=True)
class Command:
    """One command of a document.

    Attributes:
        place: Document and line, `README.md:12`.
        text: The command as it is typed.
        shown: The output that the document shows, "" if it shows none.
        mark: "not run", "run by", or "" if tests/serve/test_documents.py runs it.
        note: What the mark says: the reason, or the test that runs it.
    """

    place: str
    text: str
    shown: str = ""
    mark: str = ""
    note: str = ""

    def __str__(self) -> str:
        return f"{self.place} {self.text}"


def commands_in(document: Path) -> Iterator[Command]:
    """Yields the commands of a document's blocks, in order."""
    text = document.read_text(encoding="utf-8")
    blocks = list(_BLOCK.finditer(text))
    for block, following in zip_longest(blocks, blocks[1:]):
        lines = re.sub(f"^{block['indent']}", "", block["text"], flags=re.MULTILINE)
        place = f"{document.relative_to(ROOT)}:{_line(text, block.start('text'))}"
        mark, note = block["mark"] or "", block["note"] or ""
        if block["language"] == "console":
            for typed, shown in re.findall(r"^\$ ((?:.*\\\n)*.*)\n?((?:(?!\$ ).*\n?)*)", lines, re.MULTILINE):
                yield Command(place, typed, shown, mark, note)
        elif block["language"] == "sh":
            typed = re.findall(r"^(?!#)(?:.*\\\n)*.+$", lines, re.MULTILINE)
            answer = ""
            if (
                following
                and following["language"] in ("json", "text")
                and not text[block.end() : following.start()].strip()
            ):
                answer = following["text"]
            for number, line in enumerate(typed, start=1):
                yield Command(place, line, answer if number == len(typed) else "", mark, note)


def blocks_without_language(document: Path) -> list[str]:
    """Returns the places of fenced blocks without a language, because a command could hide there."""
    text = _without_figures(document)
    return [
        f"{document.relative_to(ROOT)}:{_line(text, block.start('text')) - 1}"
        for block in _BLOCK.finditer(text)
        if not block["language"]
    ]


def inline_commands(document: Path) -> list[str]:
    """Returns the code spans that start with make or a Python interpreter."""
    prose = _BLOCK.sub("", _without_figures(document))
    return [" ".join(command.split()) for command in _INLINE.findall(prose)]


def _without_figures(document: Path) -> str:
    """Returns a document with the blocks of benchmarks/documents.py left empty, so that lines keep their numbers."""
    text = document.read_text(encoding="utf-8")
    return _FIGURES.sub(lambda figures: "\n" * figures[0].count("\n"), text)


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def run(text: str, folder: Path, python: Path, url: str, model: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a copy of the project.

    Args:
        text: The command. Port 5000 of this machine is replaced by the server's.
        folder: The copy, which the command may write to.
        python: The interpreter that `python` stands for.
        url: Address of a running server.
        model: The model that commands of the server use, unless they name one.
    """
    address = urlsplit(url)
    command = re.sub(r"\b(localhost|127\.0\.0\.1):5000\b", address.netloc, text)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    settings = {"SERVE_MODEL": model, "SERVE_PORT": str(address.port)}
    return subprocess.run(
        ["bash", "-ec", command],
        cwd=folder,
        env={**inherited, **settings, "PATH": f"{python.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )


def agrees(shown: str, done: subprocess.CompletedProcess[str], same_model: bool = False) -> bool:
    """Returns whether a command printed what is shown, with or without its standard error.

    Figures may differ, and without `same_model` labels too.
    """
    return any(_form(shown, same_model) == _form(text, same_model) for text in (done.stdout, done.stdout + done.stderr))


def _form(text: str, same_model: bool) -> Any:
    try:
        return _json_form(json.loads(text), same_model)
    except ValueError:
        lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        if same_model:
            return [line if "%" in line else _FIGURE.sub("#", line) for line in lines]
        return [_FIGURE.sub("#", re.sub(r"% \w+", "% label", line)) for line in lines]


def _json_form(value: Any, same_model: bool) -> Any:
    match value:
        case dict():
            return {
                key: None if key in _OF_THE_MODEL and not same_model else _json_form(each, same_model)
                for key, each in value.items()
            }
        case list():
            return [_json_form(each, same_model) for each in value]
        case float() if same_model:
            return round(value, 4)
        case int() | float():
            return "#"
        case _:
            return value
