"""Keeps the threads that help with the inference of a lone image off its caller's CPU."""

import os
from collections.abc import Collection

from serve.imaging.other_process import current_cpu, threads_of


class HelperThreads:
    """The threads that an engine has started, with which a caller shares an inference.

    The kernel wakes a thread where it ran last if no CPU is idle just then, for instance because a decoder is still
    freeing its image. If that is the caller's CPU, both spin on it in turns while the other one is idle: with files of
    12 megapixels, a third of the inferences took 16 to 20 ms, where the others took 10.

    Args:
        before: ids of the process's threads before the engine was made.
    """

    def __init__(self, before: Collection[int]) -> None:
        self._threads = set(threads_of(os.getpid())).difference(before)
        self._kept_off = False

    def keep_off(self) -> None:
        """Keeps them off the calling thread's CPU from now on, where there are others."""
        if self._threads and len(cpus := os.sched_getaffinity(0)) > 1:
            self._move(cpus - {current_cpu()})
            self._kept_off = True

    def let_go(self) -> None:
        """Lets them run on every CPU that the calling thread may run on."""
        if self._kept_off:
            self._move(os.sched_getaffinity(0))
            self._kept_off = False

    def _move(self, cpus: Collection[int]) -> None:
        for thread in tuple(self._threads):
            try:
                os.sched_setaffinity(thread, cpus)
            except ProcessLookupError:
                self._threads.discard(thread)  # or it would be taken for a later thread of that id
            except OSError:  # this system does not allow it
                return
