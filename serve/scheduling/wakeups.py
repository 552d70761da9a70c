"""Lets threads that compute use up their time slice before the event loop's thread runs.

A thread that wakes up interrupts one that computes, and for both the caches are cold afterwards. Under SCHED_BATCH
(sched(7)) it waits for the other's slice to end, some milliseconds, and then finds several requests at once. Where a
CPU is idle it still runs at once.
"""

import os
from contextlib import suppress
from typing import Any, Final

_os: Final[Any] = os  # whose scheduling policies exist on Linux only


class Wakeups:
    """The wake-ups of one event loop's thread; create and call it on that thread."""

    def __init__(self) -> None:
        self._deferred = self._usual = False
        with suppress(AttributeError, OSError):
            self._usual = _os.sched_getscheduler(0) == _os.SCHED_OTHER  # one that the operator has set is kept

    def defer(self, wanted: bool) -> None:
        """Defers them from now on, or no longer; does nothing where the system does not allow it.

        A thread that is started meanwhile inherits it, so the event loop's should start none while it serves.
        """
        if wanted != self._deferred:
            self._deferred = wanted
            if self._usual:
                with suppress(OSError):
                    _os.sched_setscheduler(0, _os.SCHED_BATCH if wanted else _os.SCHED_OTHER, _os.sched_param(0))
