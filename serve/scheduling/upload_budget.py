"""Limits how many bytes all uploads may hold together.

When the budget is used up, the upload idle longest is ended, so that stalled uploads don't block new ones.
"""

import time

from serve.errors import UploadsFull
from serve.scheduling.in_flight import IDLE_SECONDS, InFlightRequest
from serve.scheduling.pacing import Pacer


class UploadBudget:
    """The bytes that all uploads of one event loop may hold.

    Args:
        max_bytes: limit for all uploads together.
        seconds: time for each upload; it gets one more second for each 64 KiB.

    Attributes:
        held: bytes of all uploads.
        receiving: the requests that hold bytes and whose body is still arriving, idle longest first.
        pacer: admits the computation on what has arrived.
    """

    def __init__(self, max_bytes: int, seconds: float) -> None:
        self.held = 0
        self.max_bytes = max_bytes
        self.seconds = seconds
        self.receiving: dict[InFlightRequest, None] = {}
        self.pacer = Pacer()

    def take(self, request: InFlightRequest, count: int) -> None:
        """Counts `count` bytes that a request has just received, and evicts idle requests if there is no room.

        Raises:
            UploadsFull: there is no room, and no other upload is idle.
        """
        request.last_received = time.monotonic()
        self.receiving.pop(request, None)
        self.receiving[request] = None  # last, because it is not idle
        if self.held + count > self.max_bytes:
            self._make_room(count)
        self.held += count
        request.held += count

    def release(self, request: InFlightRequest) -> None:
        """Frees the bytes of a request."""
        self.receiving.pop(request, None)
        self.held -= request.held
        request.held = 0

    def _make_room(self, count: int) -> None:
        long_ago = time.monotonic() - IDLE_SECONDS
        while self.held + count > self.max_bytes:
            idlest = next(iter(self.receiving))
            if idlest.last_received > long_ago:
                raise UploadsFull(
                    f"There is no room for this upload: the limit for all together is {self.max_bytes} bytes; "
                    "try again in a moment."
                )
            idlest.evict()
