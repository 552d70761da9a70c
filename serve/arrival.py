"""Uploads on their way in: how slowly one may come, and how many bytes all of them may hold together.

Passes chunks of bytes on as they come; knows no HTTP. Errors that leave here: `UploadTooSlow`, `UploadsFull`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

from serve.errors import UploadsFull, UploadTooSlow

# What an upload has to come at, on average and after a start, so that a large one on a slow line has its time.
_BYTES_A_SECOND: Final = 64 * 1024


class Arrivals:
    """All uploads of one event loop. max_bytes: to be held at once. seconds: for each, and one more each 64 KiB."""

    def __init__(self, max_bytes: int, seconds: float) -> None:
        self.held = 0
        self.max_bytes = max_bytes
        self.seconds = seconds

    @contextmanager
    def one(self) -> Iterator["Arrival"]:
        """An upload, whose bytes count until the end of the `with` block."""
        arrival = Arrival(self)
        try:
            yield arrival
        finally:
            self.held -= arrival.received


class Arrival:
    """One upload."""

    def __init__(self, arrivals: Arrivals) -> None:
        self.received = 0
        self._all = arrivals

    async def paced(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same chunks, while they come fast enough and there is room for them."""
        began = asyncio.get_running_loop().time()
        iterator = aiter(chunks)
        while True:
            try:
                async with asyncio.timeout_at(began + self._all.seconds + self.received / _BYTES_A_SECOND):
                    chunk = await anext(iterator)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise UploadTooSlow(
                    f"The body comes too slowly: {self.received} bytes in "
                    f"{asyncio.get_running_loop().time() - began:.0f} s; the limit is {self._all.seconds:g} s, and "
                    f"another for each {_BYTES_A_SECOND} bytes."
                ) from None
            if self._all.held + len(chunk) > self._all.max_bytes:
                raise UploadsFull(
                    f"There is no room for this upload: the limit for all together is {self._all.max_bytes} bytes; "
                    "try again in a moment."
                )
            self._all.held += len(chunk)
            self.received += len(chunk)
            yield chunk
