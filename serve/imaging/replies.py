"""What becomes of an image in a decoder, and a check of its reply, which an attacker may have written."""

from serve.errors import QueueFull, TooComplex
from serve.imaging.limits import check_limits, damaged
from serve.imaging.messages import Code, Reply, Request
from serve.imaging.varieties import VARIETIES, unsupported


class Gone(Exception):
    """The process has ended or broken the protocol, before it was given an image or while it had one."""


class Overrun(Exception):
    """The process has used up its time."""


class Postponed(Exception):
    """The image had to wait, and its decoder was ended; it can be decoded now, by another."""


def too_busy() -> QueueFull:
    """Returns the error of an image that stepped aside, and for which there was too little CPU time."""
    return QueueFull("The server is too busy for an image that takes long to decode; try again in a moment.")


def check_reply(reply: Reply, request: Request, memory: int) -> bool:
    """Checks the reply to a request.

    Args:
        memory: bytes that the decoder may use.

    Returns:
        Whether the image is decoded; if not, the reply contradicts itself or the request.

    Raises:
        RequestError: the image is refused.
    """
    if reply.code in (Code.DONE, Code.OVER_LIMIT):
        size = (reply.width, reply.height)
        if min(*size, reply.frames) < 1:
            return False
        check_limits(size, reply.frames, request.rules.spec, request.rules.limits)
        return reply.code == Code.DONE
    match reply.code:
        case Code.NO_MEMORY:
            raise TooComplex(f"Decoding the image takes more memory than the limit, {memory // 2**20} MB.")
        case Code.UNSUPPORTED:
            variety = VARIETIES[reply.variety]
            if variety.value[0] != request.format_name:
                return False
            raise unsupported(variety)
        case _:
            raise damaged(request.format_name)
