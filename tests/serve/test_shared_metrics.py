"""The files of shared metrics: allocation, locking, removal of abandoned ones, and what happens without room."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.config.settings import ROOT
from serve.observability import shared_metrics as shared
from serve.observability.shared_metrics import check_shared_files, clear_gauges, shared_metrics, use_unshared_metrics

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@pytest.fixture(autouse=True)
def parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """Stand-ins for /dev/shm and the folder for temporary files."""
    memory, temporary = tmp_path / "shm", tmp_path / "tmp"
    memory.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(shared, "_SHARED_MEMORY", str(memory))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    yield memory, temporary
    use_unshared_metrics()


def counted_in() -> Path | None:
    return Path(os.environ[VARIABLE]) if VARIABLE in os.environ else None


def test_files_are_fully_allocated_beforehand_and_removed_afterwards(parents: tuple[Path, Path]) -> None:
    with shared_metrics(3):
        folder = counted_in()
        assert folder
        assert folder.parent == parents[0]
        files = sorted(folder.glob("*.db"))
        assert len(files) == 12
        for file in files:
            assert file.stat().st_blocks * 512 >= file.stat().st_size == 256 * 1024
        assert check_shared_files(2)
    assert counted_in() is None
    assert not list(parents[0].iterdir())


def test_abandoned_folders_are_removed_and_others_are_not(parents: tuple[Path, Path]) -> None:
    dead, older, other = (parents[0] / name for name in ("serve-metrics-dead", "serve-metrics-older", "other"))
    for folder in (dead, older, other):
        folder.mkdir()
        (folder / "counter_0.db").touch()
    for folder in (dead, other):
        (folder / "lock").touch()
    os.mkfifo(parents[1] / "serve-metrics-pipe")
    trap = parents[1] / "serve-metrics-trap"
    trap.mkdir()
    os.mkfifo(trap / "lock")  # has to be opened without waiting for a writer
    with shared_metrics(2):
        held = counted_in()
        with shared_metrics(2):
            assert held
            assert (held / "counter_1.db").exists()
    assert {path.name for path in parents[0].iterdir()} == {"serve-metrics-older", "other"}


def test_a_folder_stays_locked_while_any_of_its_processes_lives(parents: tuple[Path, Path]) -> None:
    code = (
        "import os, sys, time\nfrom serve.observability import shared_metrics\n"
        "shared_metrics._SHARED_MEMORY = sys.argv[1]\n"
        "with shared_metrics.shared_metrics(1):\n"
        "    if os.fork():\n        os._exit(0)\n"
        "    print('forked', flush=True)\n"
        "    sys.stdin.read()\n"
        "    os._exit(1)"
    )
    command = [sys.executable, "-c", code, str(parents[0])]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"forked\n"
        assert process.wait(20) == 0  # the first process; the other keeps the folder locked
        (left,) = parents[0].iterdir()
        with shared_metrics(1):
            assert left.exists()
        assert process.stdin
        process.stdin.close()
        assert process.stdout.read() == b""  # the other process has ended, too
    with shared_metrics(1):
        assert not left.exists()


def no_room(number: int) -> object:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_without_room_in_shared_memory_the_temporary_folder_is_used(
    parents: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = os.posix_fallocate

    def allocate_in_temporary(descriptor: int, *of: int) -> None:
        if parents[0] in Path(f"/proc/self/fd/{descriptor}").readlink().parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(descriptor, *of)

    monkeypatch.setattr(os, "posix_fallocate", allocate_in_temporary)
    with shared_metrics(2):
        folder = counted_in()
        assert folder
        assert folder.parent == parents[1]
        assert not list(parents[0].iterdir())


def test_without_any_room_metrics_are_not_shared_and_a_warning_is_logged(
    parents: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most[1]))  # the kernel refuses larger files
    try:
        with shared_metrics(2):
            assert counted_in() is None
            assert not check_shared_files(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert not [path for parent in parents for path in parent.iterdir()]
    assert "no room for 2048 KB of shared files" in caplog.text
    assert "file too large" in caplog.text


def test_without_any_folder_metrics_are_not_shared_and_a_warning_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared, "_SHARED_MEMORY", "/nonexistent")
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/nonexistent"])
    with shared_metrics(2):
        assert counted_in() is None
    assert "/metrics shows one worker only" in caplog.text


def test_a_worker_whose_files_were_removed_does_not_share_its_metrics(caplog: pytest.LogCaptureFixture) -> None:
    with shared_metrics(2):
        folder = counted_in()
        assert folder
        (folder / "counter_1.db").unlink()
        assert check_shared_files(0)
        assert not check_shared_files(1)
        os.environ[VARIABLE] = str(folder)  # as in the supervisor
    assert "worker 2 no longer shares its metrics" in caplog.text


ALL_SERIES = """
import os, sys
from pathlib import Path
from serve.observability.shared_metrics import clear_gauges, shared_metrics, shared_process_ids
from serve.config.settings import Config
from tests.tiny_model import PATH
with shared_metrics(1):
    from serve.observability.metrics import STAGES, join_shared_metrics
    join_shared_metrics(0, shared_process_ids(1))
    from serve.api.app import create_app, create_metrics
    from serve.model.classifier import load_classifier
    from serve.problems import RULES
    config = Config(model=str(PATH))
    classifier = load_classifier(config)
    metrics = create_metrics(classifier)
    routes = [route.path for route in create_app(config, classifier, metrics=metrics).routes] + ["none"]
    for route in routes:
        for code in (200, 204, 206, 301, 304, *range(400, 432), 499, *range(500, 506)):
            metrics.request_started()
            metrics.request_finished(route, code, 0.1)
    for stage in STAGES:
        metrics.observe_stage(stage, 0.1)
    metrics.request_started()
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    used = {file.name: int.from_bytes(file.read_bytes()[:4], sys.byteorder) for file in folder.glob("*.db")}
    sizes = {file.stat().st_size for file in folder.glob("*.db")}
    assert "serve_requests_in_progress 1.0" in metrics.render().decode()
    clear_gauges(0)
    assert "serve_requests_in_progress" not in metrics.render().decode()
    assert f'code="200",route="{routes[0]}"' in metrics.render().decode()
print(len(routes), sorted(used), max(used.values()), *sizes)
"""


def test_all_possible_series_fit_into_the_allocated_files() -> None:
    """Otherwise a file would grow, which could kill the process."""
    done = subprocess.run([sys.executable, "-c", ALL_SERIES], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    routes, *names, used, size = done.stdout.replace(",", "").split()
    assert int(routes) > 10
    assert names == ["['counter_0.db'", "'gauge_livemax_0.db'", "'gauge_livesum_0.db'", "'histogram_0.db']"]
    assert 50_000 < int(used) < int(size) == 256 * 1024


def test_clearing_gauges_without_shared_metrics_does_nothing() -> None:
    clear_gauges(0)
    assert counted_in() is None
