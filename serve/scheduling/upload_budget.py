"""Uploads on their way in: how slowly one may come, and how many bytes all of them may hold together.

Where there is no room for more, the one that has been silent longest makes way, so that stalled uploads keep nobody
out. Passes chunks of bytes on as they come; knows no HTTP. Errors that leave here: `UploadTooSlow`, `UploadsFull`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Final

from serve.errors import UploadsFull, UploadTooSlow
from serve.scheduling.pacing import Pacer

# What an upload has to come at, on average and after a start, so that a large one on a slow line has its time.
_BYTES_A_SECOND: Final = 64 * 1024
# An upload of which nothing has come for so long may be made to go.
_SILENT_SECONDS: Final = 1.0


class UploadBudget:
    """All uploads of one event loop. max_bytes: to be held at once. seconds: for each, and one more each 64 KiB."""

    def __init__(self, max_bytes: int, seconds: float) -> None:
        self.held = 0
        self.max_bytes = max_bytes
        self.seconds = seconds
        self.arriving: set[Arrival] = set()
        self.pacer = Pacer()

    @contextlib.contextmanager
    def one(self) -> Iterator["Arrival"]:
        """An upload, whose bytes count until the end of the `with` block."""
        arrival = Arrival(self)
        try:
            yield arrival
        finally:
            self.arriving.discard(arrival)  # its reader may have been left in the middle, and not yet ended
            self.held -= arrival.held
            arrival.held = 0

    def make_room(self, count: int) -> None:
        """Room for so many bytes more, if need be that of silent uploads; raises `UploadsFull`."""
        long_ago = _now() - _SILENT_SECONDS
        while self.held + count > self.max_bytes:
            silent = min(self.arriving, key=lambda arrival: arrival.last_received, default=None)
            if silent is None or silent.last_received > long_ago:
                raise UploadsFull(
                    f"There is no room for this upload: the limit for all together is {self.max_bytes} bytes; "
                    "try again in a moment."
                )
            silent.evict()


class Arrival:
    """One upload. held: bytes that it keeps from the others. heard: when something of it last came."""

    def __init__(self, arrivals: UploadBudget) -> None:
        self.held = 0
        self.last_received = _now()
        self._all = arrivals
        self._made_way = False
        self._waiting = asyncio.timeout(None)

    async def limit_rate(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same chunks, while they come fast enough and there is room for them."""
        began = _now()
        iterator = aiter(chunks)
        self._all.arriving.add(self)
        try:
            while True:
                # However fast it came before, it may not then be silent for longer than one that begins.
                until = min(began + self.held / _BYTES_A_SECOND, self.last_received) + self._all.seconds
                self._waiting = asyncio.timeout_at(until)
                try:
                    async with self._waiting:
                        chunk = await anext(iterator)
                except StopAsyncIteration:
                    if self._made_way:
                        raise self._refusal(began) from None
                    return
                except TimeoutError:
                    raise self._refusal(began) from None
                if self._made_way:
                    raise self._refusal(began)
                self.last_received = _now()
                self._all.make_room(len(chunk))
                self._all.held += len(chunk)
                self.held += len(chunk)
                await self._all.pacer.turn()  # whoever reads the chunk computes
                yield chunk
        finally:
            self._all.arriving.discard(self)

    def evict(self) -> None:
        """End it: its bytes are free from now on."""
        self._made_way = True
        self._all.arriving.discard(self)
        self._all.held -= self.held
        self.held = 0
        with contextlib.suppress(RuntimeError):  # its time was up anyway
            self._waiting.reschedule(_now())

    def _refusal(self, began: float) -> UploadsFull | UploadTooSlow:
        if self._made_way:
            return UploadsFull(
                f"The upload was silent for more than {_SILENT_SECONDS:g} s, and others needed its room: the limit for "
                f"all together is {self._all.max_bytes} bytes; try again in a moment."
            )
        return UploadTooSlow(
            f"The body comes too slowly: {self.held} bytes in {_now() - began:.0f} s; the limit is "
            f"{self._all.seconds:g} s, and another for each {_BYTES_A_SECOND} bytes."
        )


def _now() -> float:
    return asyncio.get_running_loop().time()
