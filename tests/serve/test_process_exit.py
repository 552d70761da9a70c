"""Tests how the real process ends: by any signal at any moment, with closed streams, and after a failed start."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx2
import pytest

from serve.config.settings import ROOT
from tests.server_process import running_server, wait_for
from tests.tiny_model import PATH as TINY_MODEL

FLAGS = ("--model", str(TINY_MODEL), "--log-format", "json", "--grace-seconds", "5")
# Starts a server after the code in the placeholder has changed something in it.
START = """
import runpy, sys, threading, time
{}
sys.argv[0] = "serve"
runpy.run_module("serve", run_name="__main__")
"""


def answers(port: int) -> bool:
    try:
        return bool(httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200)
    except httpx2.TransportError:
        return False


@contextmanager
def started(command: str, *flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process in which a shell runs `command`, where "$@" starts a server; and the server's port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [sys.executable, "-m", "serve", "--port", str(port), *FLAGS, *flags]
    with subprocess.Popen(
        ["sh", "-c", command, "sh", *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process, port
        finally:
            process.kill()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_closed_streams_are_replaced_by_dev_null(closed: str, workers: str, cat: bytes) -> None:
    with started(f'exec "$@" {closed}', "--workers", workers) as (process, port):
        wait_for(lambda: answers(port))
        answer = httpx2.post(f"http://127.0.0.1:{port}/upload", files={"file": ("cat.jpg", cat)})
        assert answer.status_code == 200
        open_files = Path(f"/proc/{process.pid}/fd")
        for number, sign in enumerate(("<&-", ">&-", "2>&-")):
            if sign in closed.split():
                assert str((open_files / str(number)).readlink()) == "/dev/null"
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_each_stop_signal_ends_it_normally(number: int, workers: str) -> None:
    with running_server(sys.executable, *FLAGS, "--workers", workers) as server:
        assert server.stop(number) == 0
        assert not [line for line in server.lines if "Traceback" in line or '"level": "error"' in line]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_under_nohup_it_ignores_sighup(workers: str) -> None:
    with started('trap "" HUP; exec "$@"', "--workers", workers) as (process, port):
        wait_for(lambda: answers(port))
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert answers(port)
        process.terminate()
        assert process.wait(20) == 0


def handles_sigterm(process: subprocess.Popen[str]) -> bool:
    """Whether the process has installed its signal handler; before that, Python is still starting."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(caught & 1 << signal.SIGTERM - 1)


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3, 0.5, 0.8, 1.5])
@pytest.mark.parametrize("workers", ["1", "3"])
def test_repeated_signals_from_any_moment_on_end_it_normally(moment: float, workers: str) -> None:
    with started('exec "$@"', "--workers", workers) as (process, _):
        wait_for(lambda: handles_sigterm(process))
        time.sleep(moment)
        give_up = time.monotonic() + 20
        while process.poll() is None:  # during its start, draining and exit
            assert time.monotonic() < give_up
            process.send_signal(signal.SIGTERM)
            time.sleep(0.002)
        assert process.returncode == 0
        assert process.stderr
        assert "Traceback" not in process.stderr.read()


def test_a_server_started_by_its_commands_name_ends_normally_too() -> None:
    command = [sys.executable, "-m", "serve", "serve", "--port", "0", *FLAGS]
    for line in ("", '"message": "tiny'):  # during the imports, and once it is ready
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            wait_for(partial(handles_sigterm, process))
            while line and process.stderr and line not in process.stderr.readline():
                assert process.poll() is None
            process.terminate()
            assert process.wait(20) == 0


HANGS_AT_THE_END = """
import serve.server.signals, serve.scheduling.scheduler
serve.server.signals.EXIT_MARGIN_SECONDS = 0.5
serve.scheduling.scheduler.Scheduler.close = lambda *_: time.sleep(600)
"""


def test_a_server_that_hangs_at_its_end_is_killed_by_the_kernel() -> None:
    flags = (*FLAGS[:-1], "1")
    with running_server(sys.executable, *flags, code=START.format(HANGS_AT_THE_END)) as server:
        httpx2.get(f"{server.url}/readyz")  # before the first response a signal ends it without the scheduler
        began = time.monotonic()
        assert server.stop() == -signal.SIGALRM
        assert time.monotonic() - began < 5


def test_a_worker_that_hangs_at_its_end_does_not_outlive_the_supervisor() -> None:
    flags = (*FLAGS[:-1], "1", "--workers", "2")
    with running_server(sys.executable, *flags, code=START.format(HANGS_AT_THE_END)) as server:
        wait_for(lambda: sum("is ready" in line for line in server.lines) == 2)
        pid = server.process.pid
        left = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        server.process.kill()
        server.process.wait()
        wait_for(lambda: not any(Path(f"/proc/{each}").exists() for each in left))


FAILURES = {
    "no thread": (
        'def refuse(*_): raise RuntimeError("can\'t start new thread")\nthreading.Thread.start = refuse',
        "can't start new thread",
    ),
    "no thread for pictures": (
        "from serve.scheduling.scheduler import Scheduler\n"
        'def refuse(*_, **__): raise RuntimeError("can\'t start new thread")\n'
        "Scheduler.__init__ = refuse",
        "RuntimeError: can't start new thread",
    ),
    "no memory": (
        "from serve.model import classifier\ndef refuse(_): raise MemoryError\nclassifier.load_classifier = refuse",
        "MemoryError",
    ),
    "no file left": (
        "import asyncio.base_events\n"
        "async def refuse(*_, **__): raise OSError(24, 'Too many open files')\n"
        "asyncio.base_events.BaseEventLoop.create_server = refuse",
        "OSError: [Errno 24] Too many open files",
    ),
    "no number at the end of the warm-up": (
        "import numpy\nfrom serve.model import engines\n"
        "engines.run = lambda session, batch: numpy.full((1, 1000), numpy.nan)",
        "did not give 1000 finite logits",
    ),
    "a message of two lines": (
        "def refuse(*_): raise ValueError('one\\ntwo \\x1b[31m')\nimport resource\nresource.getrlimit = refuse",
        "ValueError: one\\ntwo \\x1b[31m",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_any_failure_at_the_start_gives_status_2_and_one_line(failure: str, workers: str) -> None:
    code, words = FAILURES[failure]
    done = failing(code, workers)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("serve: ")
    assert words in done.stderr


def test_a_first_worker_killed_during_its_start_gives_status_2_and_one_line() -> None:
    code = (
        "import os, serve.model.classifier\nserve.model.classifier.load_classifier = lambda _: os.kill(os.getpid(), 9)"
    )
    done = failing(code, "2")
    assert done.returncode == 2
    assert done.stderr == "serve: the first worker ended by SIGKILL before it was ready\n"


def test_numpy_starts_no_threads() -> None:
    code = (
        "import os\n"
        "class Watching:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy': print(os.environ.get('OPENBLAS_NUM_THREADS'), flush=True)\n"
        "sys.meta_path.insert(0, Watching())\n"
    )
    command = [sys.executable, "-c", START.format(code), "--port", "0", "--model", "none.onnx"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout == "1\n"


def failing(code: str, workers: str) -> subprocess.CompletedProcess[str]:
    """A server started after `code` has run."""
    return subprocess.run(
        [sys.executable, "-c", START.format(code), "--port", "0", *FLAGS, "--log-level", "error", "--workers", workers],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_warnings_and_uncaught_errors_are_logged() -> None:
    code = (
        "import asyncio, gc, serve.api.handlers, warnings\n"
        "async def task(): raise ValueError('never \\x1b[31m retrieved')\n"
        "async def answer(self, request):\n"
        "    warnings.warn('this is a warning')\n"
        "    threading.Thread(target=lambda: 1 / 0).start()\n"
        "    asyncio.ensure_future(task())\n"
        "    await asyncio.sleep(0.2)\n"
        "    gc.collect()\n"
        "    return serve.api.handlers.Response()\n"
        "serve.api.handlers.Handlers.livez = answer"
    )
    with running_server(sys.executable, *FLAGS, code=START.format(code)) as server:
        httpx2.get(f"{server.url}/livez", timeout=20)
        server.stop()
        told = [json.loads(line) for line in server.lines]
    assert any("this is a warning" in line["message"] for line in told)
    assert any("ZeroDivisionError" in line.get("exception", "") for line in told)
    assert any("never \\x1b[31m retrieved" in line.get("exception", "") for line in told)
