"""How far something has come, on one changing line of a terminal. No error leaves this module."""

import shutil
import sys
import time
from typing import Final

_WIDTH: Final = 30
_EVERY_SECONDS: Final = 0.2
_CLEAR: Final = "\r\x1b[K"


def bar(share: float) -> str:
    """So much of a bar, 0 to 1, and as per cent."""
    filled = round(min(1.0, share) * _WIDTH)
    return f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {share:4.0%}"


class FileProgress:
    """Files done, by rate, time left and problems. Where standard error is no terminal nothing is shown.

    before: files of an earlier run, which count as done and not for the rate.
    """

    def __init__(self, before: int) -> None:
        self.total: int | None = None
        self._shows = sys.stderr.isatty()
        self._before = before
        self._done = self._problems = 0
        self._began = self._drawn = time.monotonic()

    def step(self, problem: bool) -> None:
        """One more file is done."""
        self._done += 1
        self._problems += problem
        if self._shows and time.monotonic() - self._drawn >= _EVERY_SECONDS:
            self._drawn = time.monotonic()
            columns = shutil.get_terminal_size().columns
            print(f"{_CLEAR}{self._line()[: columns - 1]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave the line to others."""
        if self._shows:
            print(_CLEAR, end="", file=sys.stderr, flush=True)

    @property
    def shows(self) -> bool:
        """Whether there is a terminal."""
        return self._shows

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def _line(self) -> str:
        rate = self._done / self.seconds
        done = self._before + self._done
        if self.total:
            left = max(0, self.total - done) / rate
            text = f"{bar(done / self.total)} {done} of {self.total}, {rate:.1f} a second, {_time(left)} left"
        else:
            text = f"{done} files, {rate:.1f} a second"
        return text + (f", {self._problems} with problems" if self._problems else "")


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
