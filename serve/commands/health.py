"""`python -m serve health`: checks whether a server with these settings is ready, for container health checks.

Imports no third-party package, so that a check takes a tenth of a second.
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
# The address at which to reach a server that listens on every interface.
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Requests `/readyz` on this machine and prints one line.

    Returns:
        The exit status: 0 if the answer is 200, else 1.

    Raises:
        ConfigError: a setting is not allowed.
    """
    parser = argument_parser("health", "Exit with 0 if the server on this machine is ready, else with 1.", "")
    config = load_config(arguments, environment, parser)
    host = _LOOPBACK.get(config.host, config.host)
    where = one_line(f"http://{f'[{host}]' if ':' in host else host}:{config.port}/readyz")
    try:
        connecting = closing(http.client.HTTPConnection(host, config.port))
        with _time_limit(TIMEOUT_SECONDS), connecting as connection:
            connection.request("GET", "/readyz")
            status = connection.getresponse().status
    except TimeoutError:
        print(f"not ready: {where} did not answer within {TIMEOUT_SECONDS:g} s")
        return 1
    except (OSError, UnicodeError, http.client.HTTPException) as error:  # the last two: invalid host names
        print(f"not ready: {where}: {getattr(error, 'strerror', None) or f'no HTTP response ({type(error).__name__})'}")
        return 1
    if status != http.client.OK:
        print(f"not ready: {where} answered {status}")
        return 1
    print(f"ready: {where}")
    return 0


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` if the block takes longer; a socket timeout would start again with each byte."""
    before = signal.signal(signal.SIGALRM, _raise_timeout)
    # Repeats, because after the first alarm the client goes on to the next address of the host.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _raise_timeout(number: int, frame: FrameType | None) -> None:
    raise TimeoutError
