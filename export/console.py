"""What an export prints while it runs: a line with its time for each stage, and a progress bar for long ones."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve.printable import printable, progress_bar

Progress = Callable[[int, int], None]  # called with what is done and the total


@contextmanager
def stage(title: str) -> Iterator[Callable[[str], None]]:
    """Prints the stage's title at once, and at its end its time and the notes that were passed to the callable."""
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
    """Draws a progress bar if standard output is a terminal, and erases it when all is done."""
    if sys.stdout.isatty():
        text = f"{progress_bar(done / total)} {done}/{total}"
        print(text if done < total else " " * len(text), end="\b" * len(text), flush=True)
