"""`make deaths`: end decoders under load, from outside by SIGKILL and from inside by images that crash them.

    python -m tests.hostile.deaths --seconds 60

First, decoders and the fork server are killed at random beside 16 clients: every request has to get one answer, 200 or
422, and no process, file or memory may be left. Then eight clients send good images: alone, beside 100 good images a
second, and beside 100 a second that crash their decoder. Prints a table and a verdict; exits with 1 if a promise is
broken.
"""

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from tests.hostile.client import megabytes
from tests.hostile.overload import Phase, closed_loop, open_loop, request_sender
from tests.hostile.takeover import MARK
from tests.server_process import ROOT, ServerProcess, running_server

PHOTO = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
BITMAP = (ROOT / "tests" / "data" / "pictures" / "rgb.bmp").read_bytes()
CRASHING = PHOTO + MARK + b"crashing"
# A server whose decoders do what images tell them, so that they can be crashed.
OBEDIENT = """
import runpy
from serve.imaging.fork_server import ForkServer
ForkServer.__init__.__defaults__ = ("tests.hostile.takeover:act",)
runpy.run_module("serve", run_name="__main__")
"""
KILL_PAUSE = 0.15
FORK_SERVER_PAUSE = 2.0  # longer than it takes to start, or no decoder could be had
CLIENTS = 16
MAX_GROWTH = 20.0  # megabytes
GOOD_CLIENTS = 8
FLOOD_RATE = 100.0
ROUND_SECONDS = 4.0
REST_SECONDS = 6.0  # the server returns its memory every five seconds


def children_of(pid: int) -> list[int]:
    """Returns the processes that a process has started, zombies included."""
    found: list[int] = []
    with suppress(OSError):  # it has ended
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def descendants_of(pid: int) -> list[int]:
    """Returns the processes that descend from one, zombies included."""
    found = children_of(pid)
    return found + [each for child in found for each in descendants_of(child)]


def ended(pid: int) -> bool:
    """Returns whether a process is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True


def status_of(pid: int) -> str:
    """Returns /proc/PID/status, empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


def files_of(pid: int) -> int:
    """Returns the number of a process's open files."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def load(server: ServerProcess, seconds: float, clients: int, *images: bytes) -> Phase:
    """Sends the images in turn, in a closed loop of so many clients."""
    senders = [request_sender(server, each) for each in images]
    return asyncio.run(closed_loop(lambda phase: random.choice(senders)(phase), clients, seconds))


def statuses(phase: Phase) -> Counter[int]:
    """Returns how often each status was answered."""
    return Counter(status for status, _ in phase.answers)


def at_rest(server: ServerProcess) -> tuple[float, int, int]:
    """Returns the idle server's megabytes, open files and descendants, once it knows which decoders are gone."""
    load(server, 1.0, 4, PHOTO, BITMAP)
    time.sleep(REST_SECONDS)
    pid = server.process.pid
    return megabytes(pid, "VmRSS"), files_of(pid), len(descendants_of(pid))


def kill_at_random(server: ServerProcess, seconds: float) -> list[str]:
    """Kills decoders and the fork server under load. Prints what it saw, and returns which promises were not kept."""
    pid, killed, spared_until = server.process.pid, Counter[str](), 0.0
    before = at_rest(server)
    with ThreadPoolExecutor(1) as thread:
        loading = thread.submit(load, server, seconds, CLIENTS, PHOTO, BITMAP)
        while not loading.done():
            time.sleep(KILL_PAUSE)
            fork_servers = children_of(pid)
            victim = random.choice(descendants_of(pid) or [0])
            is_fork_server = victim in fork_servers
            if ended(victim) or (is_fork_server and time.monotonic() < spared_until):
                continue
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                killed["fork server" if is_fork_server else "decoder"] += 1
            if is_fork_server:
                spared_until = time.monotonic() + FORK_SERVER_PAUSE
        answers = statuses(loading.result())
    after = at_rest(server)
    print(f"killed: {dict(killed)}; answers: {dict(sorted(answers.items()))}")
    for name, was, now in zip(("MB of the server", "open files", "processes"), before, after, strict=True):
        print(f"{name}: {was:.0f} before, {now:.0f} after")
    broken = {
        "decoders and fork servers are killed": len(killed) < 2,
        "every answer is 200 or 422": bool(set(answers) - {200, 422}),
        "only images whose decoder was killed are lost": answers[422]
        > killed["decoder"] + CLIENTS * killed["fork server"],
        "no error is unexpected": any("unexpected" in line for line in server.lines),
        f"the server grows by {MAX_GROWTH:.0f} MB at most": after[0] - before[0] > MAX_GROWTH,
        # Of the decoders that are kept some more may have been started, of three files each.
        "no file is left": after[1] > before[1] + 6,
        "no process is left": after[2] > before[2] + 2 or any(map(ended, descendants_of(pid))),
    }
    return [promise for promise, is_broken in broken.items() if is_broken]


def flood(server: ServerProcess, rounds: int, min_share: float = 0.8) -> list[str]:
    """Measures what good clients get beside floods. Prints what it saw, and returns which promises were not kept."""
    rates: dict[str, list[float]] = {"no others": [], "good images": [], "crashing images": []}
    answers: Counter[int] = Counter()
    for _ in range(rounds):
        for name, image in zip(rates, (b"", PHOTO, CRASHING), strict=True):
            with ThreadPoolExecutor(1) as thread:
                others = thread.submit(open_loop, server, image, FLOOD_RATE, ROUND_SECONDS) if image else None
                rates[name].append(load(server, ROUND_SECONDS, GOOD_CLIENTS, PHOTO).rate)
            if others and name == "crashing images":
                answers += statuses(others.result())
    for name, seen in rates.items():
        print(f"good images a second beside {name:<16}{'  '.join(f'{rate:5.1f}' for rate in seen)}")
    share = statistics.median(
        crashing / good for good, crashing in zip(rates["good images"], rates["crashing images"], strict=True)
    )
    print(f"beside crashing images they keep {share:.2f} of what they have beside good ones")
    print(f"answers to images that crash their decoder: {dict(sorted(answers.items()))}")
    broken = {
        f"good clients keep {min_share} of their share": share < min_share,
        "every answer to a crash is 422, or 429": not answers[422] or bool(set(answers) - {422, 429}),
    }
    return [promise for promise, is_broken in broken.items() if is_broken]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.deaths", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long processes are killed")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the floods")
    parser.add_argument("--model", default="auto", help="as for python -m serve")
    options = parser.parse_args()
    flags = ("--model", options.model, "--log-format", "json")
    with running_server(sys.executable, *flags) as server:
        broken = kill_at_random(server, options.seconds)
    with running_server(sys.executable, *flags, code=OBEDIENT) as server:
        broken += flood(server, options.rounds)
    print("NOT KEPT: " + "; ".join(broken) if broken else "kept: decoders may die, and only their images are lost")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
