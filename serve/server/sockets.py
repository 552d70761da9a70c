"""The sockets that servers listen on. Errors that leave here: `StartError`, naming the address."""

import socket
from typing import Any, Final

from serve.config.settings import Config
from serve.errors import StartError

# Bytes of answers that the system keeps for a client that does not read, which it would let grow to megabytes.
# Linux takes twice as many, for its own use.
_SEND_BUFFER: Final = 128 * 1024


def listen(config: Config) -> list[socket.socket]:
    """A TCP socket for each worker, all listening on the configured address; raises `StartError`.

    Who connects while the model is still loading waits for the fraction of a second that takes.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Alone even where several follow: another server on the port would otherwise go unnoticed.
        first = _bound(family, address, config.body_timeout_ms)
        if config.workers == 1:
            first.listen()
            return [first]
        found = first.getsockname()
        first.close()
        together = [_bound(family, found, config.body_timeout_ms, socket.SO_REUSEPORT) for _ in range(config.workers)]
        for listener in together:
            listener.listen()
        return together
    except (OSError, UnicodeError) as error:  # the latter from names that no host can have
        reason = error.strerror if isinstance(error, OSError) else "no valid host name"
        raise StartError(
            f"cannot listen on {config.host} port {config.port}: {reason}; choose others with --host and --port"
        ) from error


def _bound(family: int, address: Any, unread_ms: int, *options: int) -> socket.socket:
    # Named by its number, or asyncio takes it for no TCP socket and leaves Nagle's algorithm on: 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Connections inherit both.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # the system's own end of what was closed and is not read
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms)
    for option in (socket.SO_REUSEADDR, *options):
        listener.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
