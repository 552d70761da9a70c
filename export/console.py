"""What an export shows while it runs: a line a stage with its time, and a bar for what takes long.

No error leaves this module.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from serve.printable import printable

_BAR_WIDTH: Final = 20


@contextmanager
def stage(title: str) -> Iterator[Callable[[str], None]]:
    """One line a stage: its title at once, then what came of it and the seconds it took."""
    print(f"{title:<28}", end="", flush=True)
    notes: list[str] = []
    started = time.perf_counter()
    try:
        yield notes.append
    except BaseException:
        print("failed", flush=True)
        raise
    print(printable(f"{time.perf_counter() - started:6.1f} s  {' '.join(notes)}"), flush=True)


def show_progress(done: int, total: int) -> None:
    """A bar of how many photographs are done, on a terminal only, and wiped off again when all are."""
    if sys.stdout.isatty():
        filled = _BAR_WIDTH * done // total
        text = f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] {done}/{total}"
        print(text if done < total else " " * len(text), end="\b" * len(text), flush=True)
