"""Sends GET /livez again and again during a test, each time on a new connection.

    python -m tests.hostile.prober HOST PORT

Runs as a process of its own, so that a busy client is not mistaken for a busy server. Ends when its standard input is
closed, and prints the seconds that each answer took, as JSON.
"""

import json
import math
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.server_process import ROOT

PAUSE_SECONDS = 0.05
TIMEOUT_SECONDS = 10.0
REQUEST = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


def probe(host: str, port: int) -> float:
    """Seconds until the answer; infinite if there was none, or its status was not 200."""
    began = time.perf_counter()
    received = b""
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_SECONDS) as connection:
            connection.sendall(REQUEST)
            while more := connection.recv(4096):
                received += more
    except OSError:
        return math.inf
    return time.perf_counter() - began if received.startswith(b"HTTP/1.1 200 ") else math.inf


def with_delayed_probes(seconds: float) -> list[float]:
    """A probe's latency, and those of the probes that it delayed (corrects for coordinated omission)."""
    if math.isinf(seconds):
        return [math.inf] * round(TIMEOUT_SECONDS / PAUSE_SECONDS)
    return [seconds - PAUSE_SECONDS * number for number in range(max(1, math.ceil(seconds / PAUSE_SECONDS)))]


@contextmanager
def probing(host: str, port: int) -> Iterator[list[float]]:
    """Probe for the length of a `with` block; the list is filled when it ends."""
    command = [sys.executable, "-m", "tests.hostile.prober", host, str(port)]
    latencies: list[float] = []
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            if process.stdout is None or process.stdout.readline() != b"\n":  # it has begun
                raise RuntimeError("the prober did not start")
            yield latencies
        finally:
            output, _ = process.communicate(timeout=3 * TIMEOUT_SECONDS)
    latencies += json.loads(output)


def quantile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed (nearest rank); infinite if there are none."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else math.inf


def main() -> int:
    """Run the command and return its exit status."""
    host, port = sys.argv[1], int(sys.argv[2])
    print(flush=True)
    latencies = with_delayed_probes(probe(host, port))
    while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        latencies += with_delayed_probes(probe(host, port))
    print(json.dumps(latencies))
    return 0


if __name__ == "__main__":
    sys.exit(main())
