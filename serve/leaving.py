"""Ctrl-C and SIGTERM before there is anything to drain or to finish. No error leaves this module.

It is set up before all other imports, which take longer than all it takes to change one's mind.
"""

import os
import signal
import sys
from types import FrameType
from typing import Final

SIGNALLED: Final = 128  # and the signal's number, as shells have it


def leave_on_signals() -> None:
    """Have both end the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    """For a server a normal end; files that were to be classified are not."""
    if sys.argv[1:2] == ["classify"]:
        os._exit(SIGNALLED + number)  # there and then: raised within an import it could come out as another error
    raise SystemExit(0)
