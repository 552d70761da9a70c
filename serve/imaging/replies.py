"""Checks what a decoder replies; an attacker who took it over may have written it."""

from serve.errors import TooComplex
from serve.imaging.limits import check_limits, damaged
from serve.imaging.messages import Code, Reply, Request
from serve.imaging.varieties import VARIETIES, unsupported


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
