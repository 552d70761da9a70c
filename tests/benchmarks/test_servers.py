"""Starts, measures and stops servers that are trees of processes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from benchmarks.harness import engine_worker, loop_worker, processes, rounds
from benchmarks.harness.errors import LoadFailed, ServerFailed, WorkerFailed
from benchmarks.harness.processes import CpuWatch, ProcessTree
from benchmarks.harness.progress import Progress
from benchmarks.harness.rounds import measure_once, measure_servers
from benchmarks.harness.servers import RunningServer, ServerSpec, running
from benchmarks.harness.workers import Worker, WorkerSpec
from benchmarks.harness.workloads import Photo, Plan, Workload

SCRIPT = str(Path(__file__).with_name("scripted_server.py"))
SERVER = ServerSpec("scripted", (sys.executable, SCRIPT, "{port}"))
EXPECT = "n00000001"


@pytest.fixture
def photo(tmp_path: Path) -> Photo:
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"\xff\xd8\xff")
    return Photo(file, EXPECT)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]


def alive(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
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
    assert 1 < memory["pss"] < memory["rss"]  # Python's own code is shared
    assert not any(alive(pid) for pid in members)


def test_a_child_that_outlives_its_parent_is_ended_too() -> None:
    server = RunningServer(SERVER, b"", EXPECT)
    parent, child = server.tree.members()
    os.kill(parent, signal.SIGKILL)
    server.process.wait()
    assert alive(child)
    server.stop()
    assert not alive(child)


def test_a_server_that_gives_the_wrong_class_is_refused() -> None:
    with pytest.raises(ServerFailed, match=r"n00000001.*where n99999999 is right"):
        RunningServer(SERVER, b"", "n99999999")


def test_a_server_that_does_not_start_is_reported_with_its_output() -> None:
    broken = ServerSpec("broken", (sys.executable, "-c", "raise SystemExit('no such model')"))
    with pytest.raises(ServerFailed, match=r"broken: its process ended with status 1.*\n?.*no such model"):
        RunningServer(broken, b"", EXPECT)


def test_one_measurement_counts_right_answers(photo: Photo) -> None:
    with running(SERVER, b"", EXPECT) as server:
        cell = measure_once(server, photo, Workload("photo", 2, 0.2))
    assert cell["images"] > 0
    assert cell["wrong"] == 0
    assert cell["others_cpu_share"] >= 0


def test_a_load_without_figures_is_an_error_and_not_a_zero(tmp_path: Path) -> None:
    absent = Photo(tmp_path / "absent.jpg", EXPECT)
    with running(SERVER, b"", EXPECT) as server, pytest.raises(LoadFailed, match=r"absent\.jpg"):
        measure_once(server, absent, Workload("photo", 1, 0.1))


def test_servers_take_turns_and_one_that_fails_is_left_out_by_name(photo: Photo) -> None:
    broken = ServerSpec("broken", (sys.executable, "-c", "raise SystemExit('no such model')"))
    plan = Plan((Workload("photo", 1, 0.1), Workload("photo", 2, 0.1, rounds=1)), rounds=2)
    progress = Progress(5)
    with patch.object(progress, "step") as step:
        results, left_out = measure_servers([SERVER, broken], None, {"photo": photo}, plan, progress)
    assert [call.args[0] for call in step.call_args_list] == [
        "round 1 of 2, scripted, start",
        "round 1 of 2, scripted, 1 client",
        "round 1 of 2, scripted, 2 clients",
        "round 1 of 2, broken, start",
        "round 2 of 2, scripted, start",
        "round 2 of 2, scripted, 1 client",
    ]
    assert list(results) == ["scripted"]
    assert len(results["scripted"]["start_s"]["rounds"]) == 2
    assert len(results["scripted"]["clients"]["1"]["p50_ms"]["rounds"]) == 2
    assert len(results["scripted"]["clients"]["2"]["p50_ms"]["rounds"]) == 1
    assert [line.split(":")[0] for line in left_out] == ["broken"]


class Alone:
    """Stands in for servers and the loop; keeps the order of measurements, and sees that only one runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: str = "") -> None:
        self.running: list[str] = []
        self.order: list[str] = []
        alone = self

        class Fake(SimpleNamespace):
            def __init__(self, spec: ServerSpec | WorkerSpec, *_: object) -> None:
                if f"{spec.name}{alone.order.count(spec.name)}" == broken:
                    raise (ServerFailed if isinstance(spec, ServerSpec) else WorkerFailed)(f"{spec.name} ended")
                memory = {"pss": float(len(alone.order) % 5)}
                super().__init__(spec=spec, start_seconds=1.0, tree=SimpleNamespace(memory_mb=lambda: memory))
                alone.running.append(spec.name)

            def model_card(self) -> dict[str, str]:
                return {}

            def check(self, expect: str) -> None:
                assert expect == EXPECT

            def measure(self, **_: object) -> dict[str, float]:
                return alone.measure(self)

            def stop(self) -> None:
                alone.running.remove(self.spec.name)

        monkeypatch.setattr(rounds, "RunningServer", Fake)
        monkeypatch.setattr(rounds, "Worker", Fake)
        monkeypatch.setattr(rounds, "measure_once", self.measure)
        monkeypatch.setattr(rounds, "summarize", len)

    def measure(self, one: SimpleNamespace, *_: object) -> dict[str, float]:
        assert self.running == [one.spec.name]
        self.order.append(one.spec.name)
        return {}


THREE = [replace(SERVER, name=name) for name in "abc"]
LOOP_SPEC = WorkerSpec("l", Path(sys.executable), ())


def test_each_is_measured_alone_and_the_order_rotates_and_turns(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Alone(monkeypatch)
    plan = Plan((Workload("photo", 1, 0.1), Workload("photo", 4, 0.1, rounds=1), Workload("large", 1, 0.1)), rounds=3)
    specs = [*THREE[:2], replace(THREE[2], photos=("large",))]
    results, left_out = measure_servers(specs, LOOP_SPEC, {"photo": photo, "large": photo}, plan, Progress(5))
    assert "".join(alone.order) == "aabbl" + "abc" + "ab" + "acb" + "ab" + "cab"
    assert (alone.running, left_out) == ([], [])
    clients = {"1": 3, "4": 1, "large 1": 3}
    assert [result["clients"] for result in results.values()] == [clients, clients, {"large 1": 3}, {"4": 1}]
    assert results["a"]["loaded_mb"] == {"pss": 3.0}  # the most of all turns


@pytest.mark.parametrize("name", ["b", "l"])
def test_one_that_fails_later_is_left_out_with_all_that_was_measured_of_it(
    photo: Photo, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    alone = Alone(monkeypatch, broken=f"{name}1")
    plan = Plan((Workload("photo", 4, 0.1),), rounds=3)
    results, left_out = measure_servers(THREE, LOOP_SPEC, {"photo": photo}, plan, Progress(5))
    assert (list(results), left_out) == ([each for each in "abcl" if each != name], [f"{name} ended"])
    assert {result["clients"]["4"] for result in results.values()} == {3}
    assert alone.running == []


def test_a_server_is_stopped_when_the_load_fails(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Alone(monkeypatch)

    def fail(*_: object) -> None:
        raise LoadFailed("no figures")

    monkeypatch.setattr(rounds, "measure_once", fail)
    with pytest.raises(LoadFailed):
        measure_servers(THREE, None, {"photo": photo}, Plan((Workload("photo", 1, 0.1),), rounds=1), Progress(5))
    assert alone.running == []


def test_a_server_that_fails_once_is_started_again(photo: Photo, tmp_path: Path) -> None:
    fails_once = (
        "import os, runpy, sys\n"
        f"try: os.mkdir({str(tmp_path / 'tried')!r})\n"
        f"except FileExistsError: sys.argv[0] = {SCRIPT!r}; runpy.run_path({SCRIPT!r}, run_name='__main__')\n"
        "else: raise SystemExit('the port is taken')"
    )
    unlucky = replace(SERVER, command=(sys.executable, "-c", fails_once, "{port}"))
    plan = Plan((Workload("photo", 1, 0.1),), rounds=1)
    results, left_out = measure_servers([unlucky], None, {"photo": photo}, plan, Progress(5))
    assert (list(results), left_out) == (["scripted"], [])


def test_cpu_time_of_other_processes_is_separated_from_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 CPU seconds 14 were used: 5 by the server, 2 by this process, 1 by an ended child."""
    spent = iter([(100.0, 10.0, 1.0, 0.0, 50.0), (114.0, 15.0, 3.0, 1.0, 60.0)])
    now: dict[str, float] = {}

    def look() -> None:
        now.update(zip(("busy", "tree", "self", "children", "clock"), next(spent), strict=True))

    monkeypatch.setattr(processes, "_busy_seconds", lambda: now["busy"])
    monkeypatch.setattr(ProcessTree, "cpu_seconds", lambda self: now["tree"])
    monkeypatch.setattr(processes.time, "process_time", lambda: now["self"])
    monkeypatch.setattr(processes.time, "perf_counter", lambda: now["clock"])
    usage = SimpleNamespace(ru_utime=0.0, ru_stime=0.0)
    monkeypatch.setattr(processes.resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 2)
    look()
    watch = CpuWatch(ProcessTree(1))
    look()
    usage.ru_utime = now["children"]
    assert watch.others_share() == pytest.approx((14 - 5 - 2 - 1) / 10 / 2)


BURN = "import time\nwhile time.process_time() < 0.5: pass"
BURN_IN_A_CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])"


@pytest.mark.parametrize("burn", [BURN, BURN_IN_A_CHILD], ids=["its own", "of a child that has ended"])
def test_a_process_trees_cpu_time_is_measured(burn: str) -> None:
    code = f"{burn}\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as busy:
        assert busy.stdout
        busy.stdout.readline()
        used = ProcessTree(busy.pid).cpu_seconds()
        busy.communicate(b"\n")
    assert 0.45 < used < 2


def test_all_that_the_cpus_did_but_idle_is_busy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  1 2 4 1000 2000 8 16 32 0 0\ncpu0 0\n")
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert processes._busy_seconds() * os.sysconf("SC_CLK_TCK") == 63


def test_memory_is_read_by_its_own_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/smaps_rollup").write_text("0-1 ---p [rollup]\nRss: 3000 kB\nPss: 2000 kB\nPss_Anon: 1 kB\n")
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    monkeypatch.setattr(ProcessTree, "members", lambda self: [7])
    assert ProcessTree(7).memory_mb() == {"rss": 3.1, "pss": 2.0, "processes": 1}


LOOP_SCRIPT = """
import json, sys
print('{"imagenet_id": "n00000001"}', flush=True)
for line in sys.stdin:
    print(json.dumps({"ms": [1.0] * 200, "seconds": 2.0}), flush=True)
"""


def test_the_loop_is_measured_where_sixteen_clients_are_and_each_server_with_its_own_photographs(
    photo: Photo, tmp_path: Path
) -> None:
    script = tmp_path / "loop.py"
    script.write_text(LOOP_SCRIPT)
    loop = WorkerSpec("loop", Path(sys.executable), (str(script),))
    only_large = replace(SERVER, name="only large", photos=("large",))
    loads = (("photo", 4, 0.01), ("photo", 16, 0.05), ("photo", 64, 0.05), ("large", 1, 0.05))
    workloads = tuple(Workload(*each) for each in loads)
    photos = {"photo": photo, "large": photo}
    plan = Plan(workloads, rounds=1, answers=100)
    results, left_out = measure_servers([SERVER, only_large], loop, photos, plan, Progress(5))
    assert left_out == []
    assert list(results["loop"]["clients"]) == ["16"]
    assert results["loop"]["clients"]["16"]["images_per_s"]["median"] == 100
    assert list(results["scripted"]["clients"]) == ["4", "16", "64", "large 1"]
    assert list(results["only large"]["clients"]) == ["large 1"]
    assert results["scripted"]["clients"]["4"]["images"] >= 100


def test_answers_enough_for_a_p99_are_asked_of_all_rounds_together() -> None:
    workloads = (Workload("photo", 1, 1.0), Workload("photo", 64, 1.0, rounds=2))
    assert [Plan(workloads, rounds=5).min_answers(workload) for workload in workloads] == [20, 50]
    assert [Plan(workloads, rounds=1).min_answers(workload) for workload in workloads] == [100, 100]


def test_an_engine_times_the_requested_number_of_images_after_the_untimed_ones() -> None:
    runs: list[None] = []
    answer = engine_worker._measure(lambda: runs.append(None), seconds=0.0, untimed=3, min_answers=7)
    assert (len(runs), len(answer["ms"])) == (10, 7)


def test_the_loop_times_neither_the_first_image_nor_an_unfinished_one() -> None:
    """Images take 0.3 s: in half a second one is timed."""
    calls: list[int] = []

    class Classifier:
        def classify(self, data: bytes, top_k: int) -> None:
            calls.append(top_k)
            time.sleep(0.3)

    answer = loop_worker.measure(Classifier(), b"", workers=1, seconds=0.5)  # type: ignore[arg-type]
    assert len(answer["ms"]) == len(calls) - 2  # the first, and the one that was not finished in time
    assert answer["seconds"] == pytest.approx(sum(answer["ms"]) / 1000, abs=0.1)


def test_a_worker_that_gives_the_wrong_class_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text('print(\'{"imagenet_id": "n00000002"}\', flush=True)\ninput()\n')
    worker = Worker(WorkerSpec("engine", Path(sys.executable), (str(script),)))
    with pytest.raises(WorkerFailed, match="gives n00000002, where n00000001 is right"):
        worker.check(EXPECT)
    worker.stop()


def test_a_worker_that_ends_is_reported_with_its_output(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text("raise SystemExit('no such engine')")
    worker = Worker(WorkerSpec("engine", Path(sys.executable), (str(script),)))
    with pytest.raises(WorkerFailed, match=r"status 1:\nno such engine"):
        worker.check(EXPECT)
    worker.stop()
