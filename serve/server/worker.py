"""The child's side of a worker process, from the fork to its end."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NoReturn

from serve.server.signals import STOP_SIGNALS, exit_now, exit_on_signals, kill_self_after, report_start_failure

Heartbeat = Callable[[], None]


def become_worker(
    number: int,
    link: socket.socket,
    inherited: Iterable[socket.socket],
    exit_seconds: float,
    run: Callable[[Heartbeat], int],
) -> NoReturn:
    """Turns a forked copy of the supervisor into a worker; never returns into the copied stack.

    Args:
        number: the worker's, from 0.
        link: socket to the supervisor, for heartbeats; its end of file tells that the supervisor has ended.
        inherited: sockets of the supervisor and of other workers, to be closed.
        exit_seconds: how long the worker may take to end after the supervisor.
        run: does the work and returns the exit status; it is given a function to call every second.
    """
    status = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C in a terminal goes to the supervisor alone, which passes it on
        for other in inherited:
            other.close()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        exit_on_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        threading.Thread(target=_end_with_supervisor, args=(link, exit_seconds), daemon=True).start()
        status = run(lambda: _send_heartbeat(link))
    except Exception as error:
        status = report_start_failure(f"worker {number + 1} cannot be started: {error}")
    finally:
        exit_now(status)


def _send_heartbeat(link: socket.socket) -> None:
    with suppress(OSError):  # the supervisor reads later, or has ended
        link.send(b".", socket.MSG_DONTWAIT)


def _end_with_supervisor(link: socket.socket, seconds: float) -> None:
    """Waits for the supervisor to end, however it does, and then ends this process within `seconds`."""
    with suppress(ConnectionError):  # heartbeats that were not read make the end of file a reset
        while link.recv(1):
            pass
    kill_self_after(seconds)
    os.kill(os.getpid(), signal.SIGTERM)
