"""The server's own process loads no decoder; decoders come and go with it, and their deaths are its clients' 422."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from serve.model.files import EMBEDDED_MODEL
from tests.hostile.deaths import OBEDIENT, children_of, descendants_of, ended, flood, kill_at_random, status_of
from tests.references import PICTURES
from tests.server_process import ROOT, ServerProcess, running_server, wait_for
from tests.tiny_model import PATH as TINY_MODEL

FLAGS = ("--model", str(TINY_MODEL), "--log-format", "json")
DECODERS = re.compile("_imaging|_webp|_avif|libjpeg|libtiff|libwebp|libavif|liblcms")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(sys.executable, *FLAGS) as started:
        yield started


def upload(url: str, data: bytes) -> httpx2.Response:
    return httpx2.post(f"{url}/upload", files={"file": data}, timeout=30)


def test_the_start_up_line_and_the_metrics_say_that_decoders_are_sealed(server: ServerProcess) -> None:
    line = server.wait_for_line("is ready on")
    assert ", decoders sealed; try: curl" in line
    assert ", engine cpu (" in line
    metrics = httpx2.get(f"{server.url}/metrics").text
    assert 'decoders="sealed"' in metrics
    for reason in ("overrun", "forbidden_call", "crash", "killed", "protocol"):
        assert f'serve_decoder_deaths_total{{reason="{reason}"}} 0.0' in metrics


def test_the_servers_own_process_loads_no_decoder(server: ServerProcess) -> None:
    for path in sorted(PICTURES.iterdir()):
        assert upload(server.url, path.read_bytes()).status_code == 200, path.name
    assert upload(server.url, (PICTURES / "rgb.png").read_bytes()[:-200]).status_code == 422
    assert not DECODERS.search(Path(f"/proc/{server.process.pid}/maps").read_text())
    (fork_server,) = children_of(server.process.pid)
    assert DECODERS.search(Path(f"/proc/{fork_server}/maps").read_text())


def test_workers_and_their_supervisor_load_no_decoder(cat: bytes) -> None:
    with running_server(sys.executable, *FLAGS, "--workers", "2") as server:
        for _ in range(8):
            assert upload(server.url, cat).status_code == 200
        workers = children_of(server.process.pid)
        assert len(workers) == 2
        for pid in (server.process.pid, *workers):
            assert not DECODERS.search(Path(f"/proc/{pid}/maps").read_text())
        everyone = descendants_of(server.process.pid)
        assert server.stop() == 0
        wait_for(lambda: all(map(ended, everyone)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_decoders_end_with_the_server_however_it_ends(cat: bytes, number: signal.Signals) -> None:
    with running_server(sys.executable, *FLAGS) as server:
        assert upload(server.url, cat).status_code == 200
        everyone = descendants_of(server.process.pid)
        assert len(everyone) >= 3
        server.stop(number)
        wait_for(lambda: all(map(ended, everyone)))


def test_decoders_and_fork_servers_that_are_killed_under_load_cost_no_more_than_their_image() -> None:
    """`make deaths` does so for a minute."""
    with running_server(sys.executable, *FLAGS) as server:
        assert kill_at_random(server, 10.0) == []


def test_good_images_keep_their_share_beside_images_that_crash_their_decoder() -> None:
    """`make deaths` does so for longer and with a stricter bound, which a busy machine may miss."""
    with running_server(sys.executable, "--model", EMBEDDED_MODEL, "--log-format", "json", code=OBEDIENT) as server:
        assert flood(server, 1, min_share=0.5) == []


def test_the_folder_command_decodes_in_sealed_processes(tmp_path: Path) -> None:
    for number in range(400):
        os.link(ROOT / "tests" / "data" / "photos" / "cat.jpg", tmp_path / f"{number}.jpg")
    command = [sys.executable, "-m", "serve", "classify", "--model", str(TINY_MODEL), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        filters: set[str] = set()
        while running.poll() is None:
            for pid in descendants_of(running.pid):
                filters.update(re.findall(r"^Seccomp:\t(\d)", status_of(pid), re.MULTILINE))
        assert running.returncode == 0
    assert filters == {"0", "2"}  # the fork server, and decoders with a filter


def test_process_1_reaps_orphans() -> None:
    """A child subreaper gets orphans as process 1 does."""
    code = """
import ctypes, os, pathlib, signal, subprocess, sys, time
from serve.server import signals

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
signals.os.getpid = lambda: 1
signals.reap_orphans()
subprocess.run(["sh", "-c", "sleep 0.2 & sleep 0.1 &"], check=False)
until = time.monotonic() + 0.6
while (left := until - time.monotonic()) > 0:
    time.sleep(left)
children = pathlib.Path("/proc/self/task", str(os.getppid() and os.readlink("/proc/self")), "children").read_text()
sys.exit(f"left: {children}" if children.strip() else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_the_sandbox_the_server_says_so_loudly(cat: bytes) -> None:
    with running_server(sys.executable, *FLAGS, "--sandbox", "off") as server:
        assert upload(server.url, cat).status_code == 200
        assert server.log[0]["level"] == "warning"
        assert "sandbox=off" in server.log[0]["message"]
        assert 'decoders="off"' in httpx2.get(f"{server.url}/metrics").text
        assert not children_of(server.process.pid)
