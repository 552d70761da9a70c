"""The server's own process loads no decoder; decoders come and go with it, and their deaths are its clients' 422."""

import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.references import PICTURES
from tests.server_process import ServerProcess, running_server, wait_for
from tests.tiny_model import PATH as TINY_MODEL

FLAGS = ("--model", str(TINY_MODEL), "--log-format", "json")
DECODERS = re.compile("_imaging|_webp|_avif|libjpeg|libtiff|libwebp|libavif|liblcms")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(sys.executable, *FLAGS) as started:
        yield started


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(each) for task in tasks for each in (task / "children").read_text().split()]


def descendants_of(pid: int) -> list[int]:
    found = children_of(pid)
    return found + [each for child in found for each in descendants_of(child)]


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True


def upload(url: str, data: bytes) -> httpx2.Response:
    return httpx2.post(f"{url}/upload", files={"file": data}, timeout=30)


def test_the_start_up_line_and_the_metrics_say_that_decoders_are_sealed(server: ServerProcess) -> None:
    assert ", decoders sealed; try: curl" in server.wait_for_line("is ready on")
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


def test_nor_does_a_worker_or_its_supervisor(cat: bytes) -> None:
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


def test_decoders_and_fork_servers_that_are_killed_under_load_cost_no_more_than_their_image(cat: bytes) -> None:
    with running_server(sys.executable, *FLAGS) as server:
        bmp = (PICTURES / "rgb.bmp").read_bytes()
        assert upload(server.url, cat).status_code == 200
        statuses: Counter[int] = Counter()
        stop = threading.Event()

        def client() -> None:
            with httpx2.Client(base_url=server.url, timeout=30) as session:
                while not stop.is_set():
                    data = random.choice((cat, bmp))
                    statuses[session.post("/upload", files={"file": data}).status_code] += 1

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        until, killed = time.monotonic() + 6, 0
        while time.monotonic() < until:
            time.sleep(0.15)
            victims = descendants_of(server.process.pid)
            if victims:
                try:
                    os.kill(random.choice(victims), signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    pass
        stop.set()
        for thread in threads:
            thread.join(60)
        assert killed > 10
        assert set(statuses) <= {200, 422}, statuses
        assert statuses[200] > 20 * statuses[422] or statuses[422] <= killed
        assert upload(server.url, cat).status_code == 200
        wait_for(lambda: len(descendants_of(server.process.pid)) <= 8)
        # Idle ones that were killed last are found out at their next image; no others are left.
        assert sum(map(ended, descendants_of(server.process.pid))) <= 4
        assert server.stop() == 0
        assert not [line for line in server.lines if "unforeseen" in line]


def test_without_the_sandbox_the_server_says_so_loudly(cat: bytes) -> None:
    with running_server(sys.executable, *FLAGS, "--sandbox", "off") as server:
        assert upload(server.url, cat).status_code == 200
        assert server.log[0]["level"] == "warning"
        assert "sandbox=off" in server.log[0]["message"]
        assert 'decoders="off"' in httpx2.get(f"{server.url}/metrics").text
        assert not children_of(server.process.pid)
