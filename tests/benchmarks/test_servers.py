"""Starting, pausing and ending servers that are trees of processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.processes import CpuWatch, Tree
from benchmarks.progress import Progress
from benchmarks.rounds import LoadFailed, Photo, Plan, Step, measure_once, measure_servers
from benchmarks.servers import Contender, RunningServer, ServerFailed, running
from benchmarks.workers import Worker, WorkerFailed, WorkerSpec

SCRIPT = str(Path(__file__).with_name("scripted_server.py"))
SERVER = Contender("scripted", (sys.executable, SCRIPT, "{port}"))
EXPECT = "n00000001"


@pytest.fixture
def photo(tmp_path: Path) -> Photo:
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"\xff\xd8\xff")
    return Photo(file, EXPECT)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


def alive(pid: int) -> bool:
    """A zombie is not: who adopts orphans may leave them for a while."""
    return Path(f"/proc/{pid}").exists() and state(pid) != "Z"


def test_a_server_counts_from_its_start_to_its_first_right_answer() -> None:
    with running(SERVER, b"", EXPECT) as server:
        assert 0.01 < server.start_seconds < 20


def test_its_children_belong_to_it_and_end_with_it() -> None:
    with running(SERVER, b"", EXPECT) as server:
        members = server.tree.members()
        memory = server.tree.memory_mb()
    assert members[0] == server.process.pid
    assert len(members) == memory["processes"] == 2
    assert 1 < memory["pss"] <= memory["rss"]
    assert not any(alive(pid) for pid in members)


def test_a_child_that_outlives_its_parent_is_ended_too() -> None:
    server = RunningServer(SERVER, b"", EXPECT)
    parent, child = server.tree.members()
    os.kill(parent, signal.SIGKILL)
    server.process.wait()
    assert alive(child)
    server.stop()
    assert not alive(child)


def test_a_paused_server_stands_still_until_it_is_resumed() -> None:
    with running(SERVER, b"", EXPECT) as server:
        members = server.tree.members()
        server.pause()
        time.sleep(0.05)
        assert [state(pid) for pid in members] == ["T", "T"]
        server.resume()
        time.sleep(0.05)
        assert "T" not in [state(pid) for pid in members]


def test_a_server_that_gives_the_wrong_class_is_refused() -> None:
    with pytest.raises(ServerFailed, match=r"n00000001.*where n99999999 is right"):
        RunningServer(SERVER, b"", "n99999999")


def test_a_server_that_does_not_start_is_reported_with_what_it_wrote() -> None:
    broken = Contender("broken", (sys.executable, "-c", "raise SystemExit('no such model')"))
    with pytest.raises(ServerFailed, match=r"broken: its process ended with status 1.*\n?.*no such model"):
        RunningServer(broken, b"", EXPECT)


def test_one_measurement_leaves_the_server_paused(photo: Photo) -> None:
    with running(SERVER, b"", EXPECT) as server:
        cell = measure_once(server, photo, Step("photo", 2, 0.2))
        time.sleep(0.05)
        assert state(server.process.pid) == "T"
    assert cell["images"] > 0
    assert cell["wrong"] == 0
    assert 0 <= cell["others_cpu_share"] < 1


def test_a_load_without_figures_is_an_error_and_not_a_zero(tmp_path: Path) -> None:
    absent = Photo(tmp_path / "absent.jpg", EXPECT)
    with running(SERVER, b"", EXPECT) as server, pytest.raises(LoadFailed, match=r"absent\.jpg"):
        measure_once(server, absent, Step("photo", 1, 0.1))


def test_servers_take_turns_and_one_that_fails_is_left_out_by_name(photo: Photo) -> None:
    broken = Contender("broken", (sys.executable, "-c", "raise SystemExit('no such model')"))
    plan = Plan((Step("photo", 1, 0.1), Step("photo", 2, 0.1, rounds=1)), rounds=2, starts=2)
    results, left_out = measure_servers([SERVER, broken], None, {"photo": photo}, plan, Progress(5))
    assert list(results) == ["scripted"]
    assert len(results["scripted"]["start_s"]["rounds"]) == 2
    assert len(results["scripted"]["clients"]["1"]["p50_ms"]["rounds"]) == 2
    assert len(results["scripted"]["clients"]["2"]["p50_ms"]["rounds"]) == 1
    assert [line.split(":")[0] for line in left_out] == ["broken"]


def test_cpu_time_of_others_is_told_from_ones_own() -> None:
    burn = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass"
    busy = subprocess.Popen([sys.executable, "-c", burn])
    idle = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watches = CpuWatch(Tree(busy.pid)), CpuWatch(Tree(idle.pid))
    time.sleep(0.6)
    own, foreign = (watch.others_share() for watch in watches)
    idle.communicate(b"\n")
    busy.wait()
    assert foreign - own > 0.3 / (os.cpu_count() or 1)


def test_a_worker_that_gives_the_wrong_class_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text('print(\'{"imagenet_id": "n00000002"}\', flush=True)\ninput()\n')
    worker = Worker(WorkerSpec("engine", Path(sys.executable), str(script), ()))
    with pytest.raises(WorkerFailed, match="gives n00000002, where n00000001 is right"):
        worker.check(EXPECT)
    worker.stop()


def test_a_worker_that_ends_is_reported_with_what_it_wrote(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text("raise SystemExit('no such engine')")
    worker = Worker(WorkerSpec("engine", Path(sys.executable), str(script), ()))
    with pytest.raises(WorkerFailed, match=r"status 1:\nno such engine"):
        worker.check(EXPECT)
    worker.stop()
