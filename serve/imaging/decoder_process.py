"""The server's side of one decoder process: sends it an image, waits within limits, and checks its reply."""

import math
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

from serve.imaging.decoders import OnSlow
from serve.imaging.fork_server import KILLED, ForkServer, Terms
from serve.imaging.formats import Data
from serve.imaging.memory import anonymous_memory, clear_memory
from serve.imaging.messages import GO_ON, REPLY_BYTES, VIEW_BYTES, Code, Reply, Request
from serve.imaging.other_process import (
    ProcessClock,
    lower_priority,
    process_seconds,
    raise_address_space,
    run_anywhere,
    run_here,
)
from serve.imaging.preprocess import view_size
from serve.imaging.replies import Gone, Overrun, Postponed, too_busy

# Wall seconds that decoding may take: so many times its CPU seconds, and some more, because the machine may be busy.
_WALL_SHARE: Final = 3.0
_WALL_SLACK: Final = 1.0
_START_SECONDS: Final = 10.0
_LONGEST_POLL: Final = 3600.0
# An image steps aside after so many seconds in which its decoder ran or slept; one that sleeps for longer is ended.
_SLOW_SECONDS: Final = 0.15
_MOST_ASLEEP: Final = 0.5
# The most CPU seconds that a decoder may use between images.
_IDLE_SECONDS: Final = 0.05
# The niceness of a decoder whose image has: a third of a CPU where others want it, so that the wall time suffices.
_SLOW_NICE: Final = 3


class DecoderProcess:
    """A decoder that may still be starting.

    Args:
        fork_server: forks it.
        terms: what it gets.
        max_bytes: the largest image.
    """

    def __init__(self, fork_server: ForkServer, terms: Terms, max_bytes: int) -> None:
        self._fork_server = fork_server
        self._terms = terms
        self._open: list[int] = []
        self._memory = anonymous_memory(terms.result_bytes + max(max_bytes, VIEW_BYTES))
        self._open.append(self._memory)
        requests, self._requests = self._pipe()
        self._replies, replies = self._pipe()
        self._poll = select.poll()
        self._poll.register(self._replies, select.POLLIN)
        self.pid = 0  # known once it is ready
        self.sealed = False
        self.reusable = True  # not once its priority was lowered or its memory raised, because both last
        self.images = 0  # that it was given
        self._status: int | None = None  # once it was ended
        self._on_slow: OnSlow | None = None
        self._rested = 0.0  # its CPU seconds after its last image
        self._lowered = self._here = self.broke_protocol = False
        try:
            self._number = fork_server.fork((requests, replies, self._memory), terms)
        finally:
            for descriptor in (requests, replies):
                self._open.remove(descriptor)
                os.close(descriptor)

    def __del__(self) -> None:
        self._close()

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._open += ends
        return ends

    def wait_ready(self) -> None:
        """Waits until the process is confined; raises `Gone` if it ends instead."""
        if not self.pid:
            reply = self._receive(time.monotonic() + _START_SECONDS)
            if reply.code != Code.READY:
                raise self.protocol_error()
            self.pid, self.sealed = reply.width, bool(reply.height)

    def begin(self, request: Request, data: Data, here: bool) -> None:
        """Hands an image over, to be decoded on any CPU or `here`, on the calling thread's.

        Raises:
            Gone: the process has ended, which says nothing about the image.
        """
        self.wait_ready()
        if self._poll.poll(0):
            raise self.protocol_error() if os.read(self._replies, 1) else Gone
        if self.images and process_seconds(self.pid) - self._rested > _IDLE_SECONDS:
            raise self.protocol_error()
        self.images += 1
        at, rest = self._terms.result_bytes, memoryview(data)
        while rest:
            written = os.pwrite(self._memory, rest, at)
            at, rest = at + written, rest[written:]
        if here:
            run_here(self.pid)
        elif self._here:
            run_anywhere(self.pid)
        self._here = here
        self._clock = ProcessClock(self.pid, self._terms.threads)
        try:
            os.write(self._requests, request.pack())
        except BrokenPipeError:
            raise Gone from None

    def rest(self) -> None:
        """Tells that no image follows at once; `begin` raises `Gone` if the process has used CPU time meanwhile."""
        self._rested = process_seconds(self.pid)

    def lower_priority(self) -> None:
        """Lowers the priority of the process; it cannot be raised again."""
        self._lowered, self.reusable = True, False
        lower_priority(self.pid, _SLOW_NICE)
        run_anywhere(self.pid)

    def finish(self, request: Request, large: threading.Lock, on_slow: OnSlow | None) -> tuple[Reply, bytes, bytes]:
        """Waits for the answer to `begin`, and clears the memory.

        Args:
            request: as for `begin`.
            large: held while a large image is decoded; its decoder is ended before it is released.
            on_slow: called once, if the image takes long or has to wait for `large`; None if it has stepped aside.

        Returns:
            The reply, and if its code is `Code.DONE` the pixels of the crop and of the view.

        Raises:
            Gone: the process ended.
            Overrun: it used up its time.
            Postponed: its decoder was ended by `on_slow`.
            QueueFull: as from `on_slow`; or it stepped aside, and there was too little CPU time for it.
        """
        limit = request.rules.limits.decode_seconds
        self._on_slow = on_slow
        wall = limit * _WALL_SHARE + _WALL_SLACK
        until = time.monotonic() + wall
        reply = self._receive(until, limit, self.retire)
        if reply.code != Code.LARGE:
            return self._result(request, reply)
        limit -= self._clock.read()[0]
        waiting_since = time.monotonic()
        if not large.acquire(blocking=False):
            self._step_aside(self.retire)
            if not large.acquire(timeout=wall):
                raise too_busy()
        try:
            until += time.monotonic() - waiting_since
            self._clock = ProcessClock(self.pid, self._terms.threads)
            self._continue()
            # Without `stop`, because those that have a place may be waiting for `large`.
            return self._result(request, self._receive(until, limit))
        finally:
            self.end()
            large.release()

    def _result(self, request: Request, reply: Reply) -> tuple[Reply, bytes, bytes]:
        if reply.code in (Code.READY, Code.LARGE):
            raise self.protocol_error()
        view_at, done = self._terms.result_bytes, reply.code == Code.DONE
        pixels = os.pread(self._memory, request.rules.spec.crop**2 * 3 if done else 0, 0)
        size = view_size(reply.upright_size, request.view) if done and request.view else (0, 0)
        view = os.pread(self._memory, math.prod(size) * 3, view_at)
        clear_memory(self._memory, view_at + max(request.length, len(view)))
        return reply, pixels, view

    def protocol_error(self) -> Gone:
        """Records that the process sent something other than a valid reply, and returns the error to raise."""
        self.broke_protocol = True
        return Gone()

    def end(self) -> int:
        """Kills the process, unless it has ended, and returns its status as `os.waitpid` does."""
        self._close()
        if self._status is None:
            self._status = self._fork_server.end(self._number)
        return self._status

    def retire(self) -> None:
        """Has the process ended, without waiting."""
        self._close()
        if self._status is None:
            self._status = KILLED
            self._fork_server.retire(self._number)

    def _continue(self) -> None:
        self.reusable = False
        raise_address_space(self.pid)
        try:
            os.write(self._requests, GO_ON)
        except BrokenPipeError:
            raise Gone from None

    def _step_aside(self, stop: Callable[[], None] | None) -> None:
        """Lets the image step aside, unless it has."""
        on_slow, self._on_slow = self._on_slow, None
        if on_slow and on_slow(stop):
            if self._status is not None:
                raise Postponed
            self.lower_priority()

    def _receive(self, until: float, limit: float | None = None, stop: Callable[[], None] | None = None) -> Reply:
        """Waits for a reply.

        Args:
            until: on the clock of `time.monotonic`.
            limit: CPU seconds of the process, if it decodes.
            stop: as for `OnSlow`.
        """
        while True:
            left = until - time.monotonic()
            if limit is not None:
                cpu, asleep = self._clock.read()
                rest = min(limit - cpu, _MOST_ASLEEP - asleep)
                if left <= 0 < rest and self._lowered:
                    raise too_busy()
                left = min(left, rest)
                if self._on_slow and left > 0:
                    slow_in = _SLOW_SECONDS - cpu - asleep
                    if slow_in <= 0:
                        self._step_aside(stop)
                        continue
                    left = min(left, slow_in)
            if left <= 0:
                raise Overrun
            if self._poll.poll(min(left, _LONGEST_POLL) * 1000):
                break
        message = os.read(self._replies, REPLY_BYTES + 1)
        if not message:
            raise Gone
        try:
            return Reply.unpack(message)
        except (struct.error, ValueError):
            raise self.protocol_error() from None

    def _close(self) -> None:
        while self._open:
            os.close(self._open.pop())
