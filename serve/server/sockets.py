"""Opens the sockets that servers listen on."""

import os
import socket
from collections.abc import Mapping
from typing import Any, Final

from serve.config.settings import Config
from serve.errors import StartError

# Bytes of responses that the kernel buffers for a client that doesn't read; by default the buffer grows to megabytes.
# Linux doubles the value, for its own bookkeeping.
_SEND_BUFFER: Final = 128 * 1024
_FIRST_PASSED: Final = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)


def passed_socket(environment: Mapping[str, str]) -> socket.socket | None:
    """Returns the socket on which systemd listens for this process, as in sd_listen_fds(3); None if there is none.

    Raises:
        StartError: it is not one listening TCP socket.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    try:
        passed = socket.socket(fileno=_FIRST_PASSED)
        passed.set_inheritable(False)
        usable = passed.proto == socket.IPPROTO_TCP and passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        usable = False
    if not usable or environment.get("LISTEN_FDS") != "1":
        raise StartError(
            "systemd did not pass exactly one listening TCP socket; the socket unit needs a single ListenStream= with "
            "a port, and no Accept=yes"
        )
    return passed


def listen(config: Config, passed: socket.socket | None = None) -> list[socket.socket]:
    """Returns a TCP socket for each worker, all listening on the configured address.

    Clients that connect while the model is still loading wait until it is ready.

    Args:
        passed: from `passed_socket`; the workers then share it.

    Raises:
        StartError: the address is invalid, in use or not permitted.
    """
    if passed:
        _set_options(passed, config.body_timeout_ms)
        return [passed, *(passed.dup() for _ in range(1, config.workers))]
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Without SO_REUSEPORT, even if several sockets follow, or another server on the port would go unnoticed.
        first = _bound_socket(family, address, config.body_timeout_ms)
        listeners = [first]
        if config.workers > 1:
            address = first.getsockname()
            first.close()
            shared = (family, address, config.body_timeout_ms, socket.SO_REUSEPORT)
            listeners = [_bound_socket(*shared) for _ in range(config.workers)]
        for listener in listeners:
            listener.listen()
        return listeners
    except (OSError, UnicodeError) as error:  # UnicodeError comes from names that no host can have
        reason = error.strerror if isinstance(error, OSError) else "not a valid host name"
        raise StartError(
            f"cannot listen on {config.host} port {config.port}: {reason}; choose another with --host or --port"
        ) from error


def _bound_socket(family: int, address: Any, unread_ms: int, *options: int) -> socket.socket:
    # With an explicit protocol number, or asyncio doesn't recognise a TCP socket and leaves Nagle's algorithm on, which
    # costs 40 ms per response.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    _set_options(listener, unread_ms)
    for option in (socket.SO_REUSEADDR, *options):
        listener.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _set_options(listener: socket.socket, unread_ms: int) -> None:
    """Sets the options that accepted connections inherit."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # how long the kernel keeps a closed connection whose client doesn't read
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_ms)
