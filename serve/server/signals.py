"""Ends the process on a signal at any time, even during the imports, and without waiting for threads; reaps orphans."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final, NoReturn

SIGNAL_STATUS_BASE: Final = 128  # plus the signal's number, as in shells
START_FAILED: Final = 2
# How much longer than its grace period a server may take to end before it is killed.
EXIT_MARGIN_SECONDS: Final = 5.0
# The signals that end a server gracefully.
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def open_closed_streams() -> None:
    """Opens /dev/null for closed standard streams, or the next file or socket would get their descriptor."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def exit_on_signals() -> None:
    """Has each of `STOP_SIGNALS` end the process at once."""
    handle_stop_signals(_exit_on_signal)


def handle_stop_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    """Sets the handler of `STOP_SIGNALS`. SIGHUP and SIGQUIT stay ignored if they are, as under nohup."""
    for number in STOP_SIGNALS:
        if number in STOP_SIGNALS[:2] or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def reap_orphans() -> None:
    """Has process 1 reap the processes that the system gives it, such as decoders whose fork server was killed."""
    if os.getpid() == 1:
        signal.signal(signal.SIGCHLD, reap_children)


def reap_children(number: int, frame: FrameType | None) -> None:
    """Reaps the children that have ended, as a signal handler; `subprocess` takes their status as unknown."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def kill_self_after(seconds: float) -> None:
    """Has the kernel kill this process with SIGALRM after `seconds`, even if it hangs."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def exit_now(status: int) -> NoReturn:
    """Ends the process at once, after the log has been written.

    Python's own shutdown would wait for threads, such as a decoder that doesn't return, and free objects that others
    still use. It would also reset the signal handlers first, so that another SIGTERM would decide the exit status.
    """
    if drain := getattr(sys.stderr, "drain", None):
        drain()
    os._exit(status)


def report_start_failure(reason: object) -> int:
    """Prints one line on standard error that says why the start failed, and returns the exit status."""
    from serve.printable import one_line  # not at the top, because it imports argparse, which is slow

    print(one_line(f"serve: {reason}"), file=sys.stderr)
    return START_FAILED


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    """Exits with 0 for a server, which has no request in flight here, and else with 128 plus the signal's number."""
    command = sys.argv[1] if len(sys.argv) > 1 else "serve"
    exit_now(0 if command == "serve" or command.startswith("-") else SIGNAL_STATUS_BASE + number)
