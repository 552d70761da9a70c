"""A request's headers → the id that it is logged and answered under. No error leaves this module."""

import re
import uuid
from collections.abc import Iterable
from typing import Final

# Ids are logged and sent back, so only what is harmless in both places is taken from a client.
_SANE: Final = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's own, where it sent a sane one, or a new one. headers: with their names in lower case."""
    sent = next((value for name, value in headers if name == b"x-request-id"), b"")
    return sent.decode("ascii") if _SANE.fullmatch(sent) else uuid.uuid4().hex
