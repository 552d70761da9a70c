"""Shows what is being measured and the time left: one changing line on a terminal, else a line now and then."""

import sys
import time
from typing import Final

from serve.printable import printable, printable_lines

_LINE_EVERY: Final = 20.0  # seconds, if the output is not a terminal


class Progress:
    """Shows the current step and the time left, scaled by how long past steps took.

    Args:
        expected_seconds: Of all steps together.
    """

    def __init__(self, expected_seconds: float) -> None:
        self._left = expected_seconds
        self._done = 0.0
        self._began = time.monotonic()
        self._current = 0.0
        self._told = -_LINE_EVERY
        self._width = 0

    def step(self, what: str, expected_seconds: float) -> None:
        """End the previous step and begin this one."""
        self._done += self._current
        self._current = expected_seconds
        now = time.monotonic()
        pace = (now - self._began) / self._done if self._done > 1 else 1.0
        left = max(0.0, self._left - self._done) * pace
        text = printable(f"{_minutes(now - self._began)} gone, {_minutes(left)} left: {what}")
        if sys.stderr.isatty():
            self._width = max(self._width, len(text))
            print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)
        elif now - self._told >= _LINE_EVERY:
            self._told = now
            print(text, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        print(printable_lines(text), flush=True)

    def end(self) -> float:
        """Remove the progress line; return the seconds since the beginning."""
        self._clear()
        return time.monotonic() - self._began

    def _clear(self) -> None:
        if sys.stderr.isatty() and self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"
