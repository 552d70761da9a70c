"""Runs commands on a pipe or a terminal, and finds control characters in their output."""

import os
import pty
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tests.server_process import ROOT

# Colours, a cleared screen, a one-byte CSI, right-to-left text, a bell, a forged line, a title; no / and no NUL.
EVIL = "a\x1b[31m\x1b[2J\x9b1A\u202e\x07\x7f\r\nserve: all is well\x1b]0;title\x07"
_ALLOWED = "\n"
# Written by the progress line, and the terminal's line break.
_OWN = re.compile(r"\r\x1b\[K|\r\n|\r(?=\[)")


def control_characters(text: str) -> list[str]:
    """Returns the characters of a text that a terminal would interpret."""
    return [each for each in text if not each.isprintable() and each not in _ALLOWED]


def run(
    command: Sequence[object], environment: Mapping[str, str] | None = None, on_terminal: bool = False
) -> tuple[int, str]:
    """Runs a command.

    Args:
        command: The program and its arguments.
        environment: Environment variables in addition to this process's.
        on_terminal: Whether both output streams are a terminal, else a pipe.

    Returns:
        The exit status, and the output of both streams without the control sequences of the progress line.
    """
    words, settings = list(map(str, command)), {**os.environ, "COLUMNS": "500", **(environment or {})}
    how: dict[str, Any] = {"cwd": ROOT, "env": settings, "stdin": subprocess.DEVNULL}
    if not on_terminal:
        done = subprocess.run(words, **how, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False)
        return done.returncode, done.stdout.decode(errors="surrogateescape")
    ours, theirs = pty.openpty()
    said = b""
    with subprocess.Popen(words, **how, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        with suppress(OSError):  # the other end is closed
            while more := os.read(ours, 65536):
                said += more
        os.close(ours)
        status = process.wait(120)
    return status, _OWN.sub("\n", said.decode(errors="surrogateescape"))
