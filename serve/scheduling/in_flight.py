"""A request in flight: the bytes of its upload, its deadlines, and how it is ended from outside."""

import asyncio
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from serve.errors import DeadlinePassed, NotReady, RequestError, UploadsFull, UploadTooSlow

if TYPE_CHECKING:
    from serve.scheduling.lifecycle import Lifecycle
    from serve.scheduling.upload_budget import UploadBudget

# Share of the grace period for uploads that are still arriving. The rest is kept for classifying them, and is never
# shorter than it takes to refuse a client that goes on sending.
_UPLOAD_SHARE: Final = 0.5
_REFUSAL_SECONDS: Final = 3.0
# Part of the grace period that is kept for sending the last responses.
_RESPONSE_SECONDS: Final = 1.5
# The average rate an upload has to reach after its first seconds; a large upload on a slow line gets the time it needs.
BYTES_PER_SECOND: Final = 64 * 1024
# An upload that has sent nothing for this long may be ended in favour of another.
IDLE_SECONDS: Final = 1.0
_NEVER: Final = float("inf")


class InFlightRequest:
    """One accepted request, from its head to its response, during a `with` block of its own task.

    First its body has to arrive in time, then the answer has to be ready in time. Times are those of `time.monotonic`,
    which is the event loop's clock too.

    Args:
        lifecycle: waits for the request, and ends it when it is late.
        budget: of the bytes of all uploads.

    Raises:
        UploadTooSlow, UploadsFull, DeadlinePassed, NotReady: from the block, as soon as the request is late or was
            ended.
    """

    def __init__(self, lifecycle: "Lifecycle", budget: "UploadBudget") -> None:
        self.held = 0  # bytes of the upload
        self.last_received = self._began = time.monotonic()
        self._lifecycle = lifecycle
        self._budget = budget
        self._answer_by = 0.0  # once the body has arrived
        self._draining_since = self._drain_by = _NEVER
        self._error: RequestError | None = None
        self._task = asyncio.current_task()

    def __enter__(self) -> Self:
        self._lifecycle.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.release(self)
        self._lifecycle.remove(self)
        if self._error and self._task and not self._task.uncancel() and kind is asyncio.CancelledError:
            raise self._error from None

    def body_received(self, answer_by: float) -> None:
        """Records that the body has arrived; the rest of the time is the server's own, until `answer_by`."""
        self._budget.receiving.pop(self, None)
        self._answer_by = answer_by
        if self._draining_since < _NEVER:
            self.limit_draining(self._draining_since)
        self._lifecycle.watch(self.due())

    def due(self) -> float:
        """Returns when the request is late, as things are."""
        if self._answer_by:
            return min(self._answer_by, self._drain_by)
        # Bytes that arrived fast earn no longer pause than a new upload may make.
        earned = min(self._began + self.held / BYTES_PER_SECOND, self.last_received)
        return min(earned + self._budget.seconds, self._drain_by)

    def limit_draining(self, since: float) -> None:
        """Limits the time that is left, with draining begun at `since`."""
        grace = self._lifecycle.grace_seconds
        seconds = grace - _RESPONSE_SECONDS if self._answer_by else min(grace * _UPLOAD_SHARE, grace - _REFUSAL_SECONDS)
        self._draining_since, self._drain_by = since, since + max(0.0, seconds)

    def end(self, error: RequestError) -> None:
        """Ends the request with an error, unless it has been ended before."""
        if self._error is None and self._task is not None:
            self._error = error
            self._task.cancel()

    def end_at_shutdown(self) -> None:
        """Ends the request because the server waits no longer."""
        self.end(NotReady("The server is shutting down and could not wait for this request any longer."))

    def end_late(self) -> None:
        """Ends the request because it is late."""
        now = time.monotonic()
        if self._drain_by <= now:
            self.end_at_shutdown()
        elif self._answer_by:
            self.end(DeadlinePassed.before_answer())
        else:
            self.end(
                UploadTooSlow(
                    f"The body arrives too slowly: {self.held} bytes in {now - self._began:.0f} s; the limit is "
                    f"{self._budget.seconds:g} s, plus 1 s for every {BYTES_PER_SECOND} bytes."
                )
            )

    def evict(self) -> None:
        """Ends the request because it is idle, and frees its bytes."""
        self.end(
            UploadsFull(
                f"The upload was silent for more than {IDLE_SECONDS:g} s, and others needed its room: the limit for "
                f"all together is {self._budget.max_bytes} bytes; try again in a moment."
            )
        )
        self._budget.release(self)
