"""Shows progress on one changing line of a terminal."""

import shutil
import sys
import time
from typing import Final

from serve.printable import progress_bar

_REDRAW_SECONDS: Final = 0.2
_CLEAR: Final = "\r\x1b[K"


class FileProgress:
    """Shows files done, rate, time left and problems on standard error, if that is a terminal.

    Args:
        before: files done by an earlier run, which do not count for the rate.
    """

    def __init__(self, before: int = 0) -> None:
        self.total: int | None = None
        self.visible = sys.stderr.isatty()
        self._before = before
        self._done = self._problems = 0
        self._began = self._drawn = time.monotonic()

    def step(self, problem: bool) -> None:
        """Counts one more file."""
        self._done += 1
        self._problems += problem
        if self.visible and time.monotonic() - self._drawn >= _REDRAW_SECONDS:
            self._drawn = time.monotonic()
            columns = shutil.get_terminal_size().columns
            print(f"{_CLEAR}{self._line()[: columns - 1]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Erases the line, so that others can write there."""
        if self.visible:
            print(_CLEAR, end="", file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def _line(self) -> str:
        rate = self._done / self.seconds
        done = self._before + self._done
        if self.total:
            left = max(0, self.total - done) / rate
            text = f"{progress_bar(done / self.total)} {done} of {self.total}, {rate:.1f} a second, {_time(left)} left"
        else:
            text = f"{done} files, {rate:.1f} a second"
        return text + (f", {self._problems} with problems" if self._problems else "")


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
