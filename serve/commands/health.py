"""`python -m serve health`: is a server with these settings ready? For container health checks.

Standard library only, so that asking costs a tenth of a second. Prints one line.
"""

import http.client
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from types import FrameType
from typing import Final

from serve.config.settings import argument_parser, load_config
from serve.printable import one_line

TIMEOUT_SECONDS: Final = 2.0
# What a server that listens everywhere is asked at.
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Ask `/readyz` on this machine; 0 where it answers 200, else 1. Raises `ConfigError`."""
    parser = argument_parser("python -m serve health", "Ask a running server on this machine whether it is ready.")
    config = load_config(arguments, environment, parser)
    host = _LOOPBACK.get(config.host, config.host)
    where = one_line(f"http://{f'[{host}]' if ':' in host else host}:{config.port}/readyz")
    try:
        with _within(TIMEOUT_SECONDS):
            status = _status(host, config.port)
    except TimeoutError:
        print(f"not ready: {where} did not answer within {TIMEOUT_SECONDS:g} s")
        return 1
    except (OSError, UnicodeError, http.client.HTTPException) as error:  # the last two from names that no host can have
        print(f"not ready: {where}: {getattr(error, 'strerror', None) or type(error).__name__}")
        return 1
    if status != http.client.OK:
        print(f"not ready: {where} answered {status}")
        return 1
    print(f"ready: {where}")
    return 0


def _status(host: str, port: int) -> int:
    with closing(http.client.HTTPConnection(host, port)) as connection:
        connection.request("GET", "/readyz")
        return connection.getresponse().status


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """`TimeoutError` once what is within has taken so long in all; a socket's own limit is for each byte anew."""
    before = signal.signal(signal.SIGALRM, _give_up)
    # More than once, because trying the next of several addresses takes the first for an answer.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _give_up(number: int, frame: FrameType | None) -> None:
    raise TimeoutError
