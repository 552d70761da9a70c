"""How the process ends: on a signal at whatever time, and at once when it is done. No error leaves this module.

It is set up before all other imports, which take longer than all it takes to change one's mind.
"""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Final, NoReturn

SIGNALLED: Final = 128  # and the signal's number, as shells have it
START_FAILED: Final = 2
# How much longer than its grace period a server may take to end, before the system ends it.
HANGING_SECONDS: Final = 5.0
# What ends a server in good order, whichever of them it is.
STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

Handler = Callable[[int, FrameType | None], None]


def open_closed_streams() -> None:
    """Put /dev/null where one of the three is closed: the next file or client's socket would be taken for it."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free is this one
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def leave_on_signals() -> None:
    """Have each of them end the process."""
    on_stop(_leave)


def on_stop(handler: Handler) -> None:
    """Have a handler called for each; SIGHUP and SIGQUIT stay ignored where they were at the start, as by nohup."""
    for number in STOPPING:
        if number in STOPPING[:2] or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def end_within(seconds: float) -> None:
    """Have the system kill this process after so long, by SIGALRM, whatever it hangs in then."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def leave(status: int) -> NoReturn:
    """End the process there and then, with what its log still has to say.

    Python's own ending would wait for threads, such as a decoder that ran away, free what others are at, and first of
    all take the handlers of signals away, so that one more SIGTERM would be the status.
    """
    if drain := getattr(sys.stderr, "drain", None):
        drain()
    os._exit(status)


def failed(why: object) -> int:
    """Say in one line on standard error why something cannot start; the exit status."""
    from serve.printable import one_line  # argparse takes its time

    print(one_line(f"serve: {why}"), file=sys.stderr)
    return START_FAILED


def _leave(number: int, frame: FrameType | None) -> None:
    """For a server a normal end, as nothing is accepted yet; what a command was to do is not done."""
    leave(SIGNALLED + number if sys.argv[1:2] and not sys.argv[1].startswith("-") else 0)
