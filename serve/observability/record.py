"""What a request's line in the access log and its metrics are made of, filled in on the request's way."""

import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

from serve.observability.correlation import request_id_from

# nginx's status, for the log, of a request whose client disconnected before the response.
CLIENT_DISCONNECTED: Final = 499
_KEY: Final = "serve.record"


@dataclass(slots=True)
class RequestRecord:
    """One request and its response.

    Attributes:
        request_id: the client's, or a new one.
        started: when the request's head was complete, on the clock of `time.perf_counter`.
        status: of the response; 0 before it has begun.
        bytes_in: of the body.
        bytes_out: of the response's body.
        reason: why the request was refused; None if it was not.
        closed: whether the connection has decided on the status and ended the application's task.
        stages: the seconds of each stage, if images were classified.
    """

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    reason: str | None = None
    closed: bool = False
    stages: dict[str, float] | None = None

    def close(self, status: int, reason: str | None = None) -> None:
        """Records how the connection ended, unless it has been recorded or a response has begun."""
        if not self.closed:
            self.closed = True
            if not self.status:
                self.status, self.reason = status, reason


def record_of(scope: MutableMapping[str, Any]) -> RequestRecord:
    """Returns the record of a request, which the connection and the application share, from its ASGI scope."""
    record: RequestRecord | None = scope.get(_KEY)
    if record is None:
        record = scope[_KEY] = RequestRecord(request_id_from(scope["headers"]))
    return record
