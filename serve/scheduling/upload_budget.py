"""Limits how slowly an upload may arrive, and how many bytes all uploads may hold together.

When the budget is used up, the upload idle longest is cancelled, so that stalled uploads don't block new ones.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Final

from serve.errors import UploadsFull, UploadTooSlow
from serve.scheduling.pacing import Pacer

# The average rate an upload has to reach after its first seconds; a large upload on a slow line gets the time it needs.
_BYTES_PER_SECOND: Final = 64 * 1024
# An upload that has sent nothing for this long may be cancelled in favour of another.
_IDLE_SECONDS: Final = 1.0


class UploadBudget:
    """The bytes that all uploads of one event loop may hold.

    Args:
        max_bytes: limit for all uploads together.
        seconds: time for each upload; it gets one more second for each 64 KiB.
    """

    def __init__(self, max_bytes: int, seconds: float) -> None:
        self.held = 0
        self.max_bytes = max_bytes
        self.seconds = seconds
        self.receiving: set[Upload] = set()  # those whose body is being read
        self.pacer = Pacer()

    @contextlib.contextmanager
    def track(self) -> Iterator["Upload"]:
        """Yields an upload whose bytes count until the end of the `with` block."""
        upload = Upload(self)
        try:
            yield upload
        finally:
            self.receiving.discard(upload)  # its generator may be suspended, and not closed yet
            self.held -= upload.held
            upload.held = 0

    def make_room(self, count: int) -> None:
        """Makes room for `count` more bytes, by evicting idle uploads if necessary.

        Raises:
            UploadsFull: there is no room, and no other upload is idle.
        """
        long_ago = _now() - _IDLE_SECONDS
        while self.held + count > self.max_bytes:
            idlest = min(self.receiving, key=lambda upload: upload.last_received, default=None)
            if idlest is None or idlest.last_received > long_ago:
                raise UploadsFull(
                    f"There is no room for this upload: the limit for all together is {self.max_bytes} bytes; "
                    "try again in a moment."
                )
            idlest.evict()


class Upload:
    """One upload.

    Attributes:
        held: bytes counted against the budget.
        last_received: when its latest bytes arrived.
    """

    def __init__(self, budget: UploadBudget) -> None:
        self.held = 0
        self.last_received = _now()
        self._budget = budget
        self._evicted = False
        self._waiting = asyncio.timeout(None)

    async def limit_rate(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Passes on the chunks while they arrive fast enough and fit into the budget.

        Raises:
            UploadTooSlow: the rate fell below the minimum.
            UploadsFull: the budget is used up, or this upload was evicted.
        """
        began = _now()
        iterator = aiter(chunks)
        self._budget.receiving.add(self)
        try:
            while True:
                # Bytes that arrived fast earn no longer pause than a new upload may make.
                until = min(began + self.held / _BYTES_PER_SECOND, self.last_received) + self._budget.seconds
                self._waiting = asyncio.timeout_at(until)
                try:
                    async with self._waiting:
                        chunk = await anext(iterator)
                except StopAsyncIteration:
                    if self._evicted:
                        raise self._refusal(began) from None
                    return
                except TimeoutError:
                    raise self._refusal(began) from None
                if self._evicted:
                    raise self._refusal(began)
                self.last_received = _now()
                self._budget.make_room(len(chunk))
                self._budget.held += len(chunk)
                self.held += len(chunk)
                await self._budget.pacer.wait_for_turn()  # the consumer of a chunk computes
                yield chunk
        finally:
            self._budget.receiving.discard(self)

    def evict(self) -> None:
        """Cancels the upload and frees its bytes."""
        self._evicted = True
        self._budget.receiving.discard(self)
        self._budget.held -= self.held
        self.held = 0
        with contextlib.suppress(RuntimeError):  # it has timed out already
            self._waiting.reschedule(_now())

    def _refusal(self, began: float) -> UploadsFull | UploadTooSlow:
        if self._evicted:
            return UploadsFull(
                f"The upload was silent for more than {_IDLE_SECONDS:g} s, and others needed its room: the limit for "
                f"all together is {self._budget.max_bytes} bytes; try again in a moment."
            )
        return UploadTooSlow(
            f"The body arrives too slowly: {self.held} bytes in {_now() - began:.0f} s; the limit is "
            f"{self._budget.seconds:g} s, plus 1 s for every {_BYTES_PER_SECOND} bytes."
        )


def _now() -> float:
    return asyncio.get_running_loop().time()
