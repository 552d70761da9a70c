"""Keeps the threads that share the inference of a lone image on different CPUs."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

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

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Keeps them off the calling thread's CPU during the block, where there are others."""
        cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        others = cpus - {current_cpu()} if len(cpus) > 1 else set()
        if others:
            self._move(others)
        try:
            yield
        finally:
            if others:
                self._move(cpus)

    def _move(self, cpus: set[int]) -> None:
        for thread in tuple(self._threads):
            try:
                os.sched_setaffinity(thread, cpus)
            except ProcessLookupError:
                self._threads.remove(thread)  # or it would be taken for a later thread of that id
            except OSError:  # this system does not allow it
                return
