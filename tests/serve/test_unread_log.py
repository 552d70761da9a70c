"""The real process with an unread standard error: it answers, passes signals on and ends as usual."""

import http.client
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serve.config.settings import ROOT
from tests.hostile.unread_log import unread_log, unread_server
from tests.server_process import wait_for


def test_an_unread_log_delays_neither_requests_nor_sigterm_and_its_loss_is_reported() -> None:
    assert unread_log(2000) == []


def test_a_worker_that_is_killed_is_replaced() -> None:
    with unread_server("--workers", "2") as server:
        assert server.get(300) == [200] * 300
        before = server.workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(set(server.workers()) - set(before)) == 2)
        server.wait_until_ready()
        assert server.end()[0] == 0


def test_when_the_supervisor_is_killed_the_workers_end_and_free_the_port() -> None:
    with unread_server("--workers", "2") as server:
        assert server.get(600) == [200] * 600
        workers = server.workers()
        server.process.kill()
        server.process.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        with socket.create_server(("127.0.0.1", server.port)):
            pass


def test_a_worker_that_does_not_end_is_killed_before_it_is_logged() -> None:
    with unread_server("--workers", "2", "--grace-seconds", "1") as server:
        assert server.get(600) == [200] * 600
        os.kill(server.workers()[0], signal.SIGSTOP)
        assert server.end()[0] == 1


# A fatal error in native code writes to standard error directly.
CRASHING = """
import ctypes, runpy, sys
import serve.api.handlers
async def crash(self, request):
    ctypes.pythonapi.Py_FatalError(b"as a library may")
serve.api.handlers.Handlers.docs = crash
sys.argv[0] = "serve"
runpy.run_module("serve", run_name="__main__")
"""


def test_a_crash_ends_it_despite_an_unread_log() -> None:
    with unread_server(code=CRASHING) as server:
        assert server.get(100) == [200] * 100
        with pytest.raises((OSError, http.client.HTTPException)):
            server.get(1, "/docs")
        assert server.process.wait(20) == -signal.SIGABRT


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_failed_start_ends_it_despite_an_unread_log(workers: str) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(theirs, bytes(65536))
    os.set_blocking(theirs, True)
    command = [sys.executable, "-m", "serve", "--port", "0", "--model", "none.onnx", "--workers", workers]
    done = subprocess.run(command, cwd=ROOT, stderr=theirs, timeout=20, check=False)
    assert done.returncode == 2
    os.close(theirs)
    os.close(ours)
