"""Keeps the threads that share the inference of a lone image on different CPUs."""

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
        self._threads = [thread for thread in threads_of(os.getpid()) if thread not in before]
        self._avoided: int | None = None  # the CPU that they are kept off

    def keep_off(self) -> None:
        """Keeps them off the calling thread's CPU from now on, where there are others."""
        cpu = current_cpu() if hasattr(os, "sched_getaffinity") else None
        if cpu != self._avoided and len(cpus := os.sched_getaffinity(0)) > 1:
            self._move(cpus - {cpu})
            self._avoided = cpu

    def let_go(self) -> None:
        """Lets them run on every CPU that the calling thread may run on."""
        if self._avoided is not None:
            self._move(os.sched_getaffinity(0))
            self._avoided = None

    def _move(self, cpus: Collection[int]) -> None:
        for thread in tuple(self._threads):
            try:
                os.sched_setaffinity(thread, cpus)
            except ProcessLookupError:
                self._threads.remove(thread)  # or it would be taken for a later thread of that id
            except OSError:  # this system does not allow it
                return
