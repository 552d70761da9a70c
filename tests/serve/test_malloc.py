"""Tests that memory is returned to the system after loading and after a burst of uploads."""

import ctypes
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnxruntime as ort
import pytest
import uvicorn
from starlette.testclient import TestClient

from serve.__main__ import main
from serve.api import pipeline
from serve.api.app import create_app
from serve.commands import serve
from serve.config.cpus import cpu_budget
from serve.config.settings import Config
from serve.imaging import malloc
from serve.model import huge_code
from serve.model.classifier import Classifier
from serve.model.huge_code import move_code_to_huge_pages
from tests.server_process import running_server
from tests.tiny_model import PATH as TINY_MODEL


def test_memory_is_trimmed_once_the_model_is_loaded(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr(serve, "trim_malloc", lambda: steps.append("trim"))
    monkeypatch.setattr(gc, "freeze", lambda: None)  # because the tests go on in this process
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: steps.append("run"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert serve.serve(config, listener) == 0
    assert steps == ["trim", "run"]


def test_memory_is_trimmed_after_requests_and_not_without_any(
    config: Config, classifier: Classifier, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed = threading.Event()
    monkeypatch.setattr(pipeline, "trim_malloc", trimmed.set)
    monkeypatch.setattr(pipeline, "_TRIM_SECONDS", 0.05)
    with TestClient(create_app(replace(config, streams=1), classifier)) as client:
        time.sleep(0.3)
        assert not trimmed.is_set()  # no request yet
        assert client.post("/upload", files={"file": cat}).status_code == 200
        assert trimmed.wait(10)


_COUNT_ARENAS = """
import ctypes, sys, threading
from serve.imaging.malloc import tune_malloc
tune_malloc(int(sys.argv[1]))
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc_info.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
libc.fdopen.restype = ctypes.c_void_p
together = threading.Barrier(100)
threads = [threading.Thread(target=lambda: (libc.malloc(100), together.wait())) for _ in range(100)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.malloc_info(0, libc.fdopen(1, b"w"))
libc.fflush(None)
"""


@pytest.mark.parametrize("arenas", [1, 3])
def test_threads_share_so_many_arenas(arenas: int) -> None:
    command = [sys.executable, "-c", _COUNT_ARENAS, str(arenas)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert printed.count("<heap nr=") == arenas


def test_a_server_has_an_arena_for_each_cpu_and_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr("serve.__main__.tune_malloc", lambda arenas: given.append(arenas))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", ["serve", "no-command"])
    assert main() == 2
    assert given == [cpu_budget(0).count + 1]


@pytest.mark.parametrize(
    ("offered", "tunables", "restarts"),
    [
        ("always [madvise] never", None, True),
        ("[always] madvise never", None, True),
        ("always madvise [never]", None, False),
        ("always [madvise] never", "glibc.malloc.check=0", False),
        (None, None, False),
    ],
)
def test_huge_pages_are_requested_where_the_kernel_gives_them_and_nothing_else_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offered: str | None, tunables: str | None, restarts: bool
) -> None:
    started = []
    if offered:
        (tmp_path / "enabled").write_text(offered + "\n")
    monkeypatch.setattr(malloc, "_HUGE_PAGES_OF_SYSTEM", tmp_path / "enabled")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", "serve", "--port", "0"])
    monkeypatch.setattr("os.execve", lambda *arguments: started.append(arguments))
    monkeypatch.setenv("KEPT", "yes")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("PYTHONMALLOC", raising=False)
    if tunables:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    malloc.restart_with_huge_pages()
    assert bool(started) == restarts
    for path, arguments, environment in started:
        assert path == sys.executable
        assert arguments == [sys.executable, "-X", "dev", "-m", "serve", "--port", "0"]
        assert environment["KEPT"] == "yes"
        assert (environment["GLIBC_TUNABLES"], environment["PYTHONMALLOC"]) == ("glibc.malloc.hugetlb=1", "malloc")


def test_a_restart_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not permitted")

    (tmp_path / "enabled").write_text("always [madvise] never\n")
    monkeypatch.setattr(malloc, "_HUGE_PAGES_OF_SYSTEM", tmp_path / "enabled")
    monkeypatch.setattr("os.execve", refuse)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    malloc.restart_with_huge_pages()


def test_a_choice_of_pythons_allocator_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = []
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    monkeypatch.setattr(malloc, "_HUGE_PAGES_OF_SYSTEM", tmp_path / "enabled")
    monkeypatch.setattr("os.execve", lambda *arguments: started.append(arguments[2]))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("PYTHONMALLOC", "pymalloc")
    malloc.restart_with_huge_pages()
    assert [environment["PYTHONMALLOC"] for environment in started] == ["pymalloc"]


@pytest.mark.parametrize(
    ("tunables", "huge"),
    [
        ("glibc.malloc.hugetlb=1", True),
        ("glibc.malloc.check=1:glibc.malloc.hugetlb=1", True),
        ("", False),
        (None, False),
    ],
)
def test_whether_malloc_asks_for_huge_pages_is_told_by_its_tunables(
    monkeypatch: pytest.MonkeyPatch, tunables: str | None, huge: bool
) -> None:
    monkeypatch.setenv("PYTHONMALLOC", "pymalloc")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if tunables is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    assert malloc.has_huge_pages() == huge


def _huge_pages_are_offered() -> bool:
    return "[never]" not in malloc._HUGE_PAGES_OF_SYSTEM.read_text() and "GLIBC_TUNABLES" not in os.environ


def test_a_server_restarts_in_its_own_process() -> None:
    with running_server(sys.executable, "--model", str(TINY_MODEL)) as server:
        environment = Path(f"/proc/{server.process.pid}/environ").read_bytes()
        assert (b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1\0" in environment) == _huge_pages_are_offered()


def test_the_code_of_onnxruntime_is_in_huge_pages_with_the_same_bytes() -> None:
    library = Path(ort.capi.onnxruntime_pybind11_state.__file__).resolve()
    with running_server(sys.executable, "--model", str(TINY_MODEL)) as server:
        folder = Path(f"/proc/{server.process.pid}")
        code = [line.split(maxsplit=5) for line in (folder / "maps").read_text().splitlines() if " r-xp " in line]
        moved = [[int(address, 16) for address in fields[0].split("-")] for fields in code if len(fields) == 5]
        assert bool(moved) == _huge_pages_are_offered()
        # What does not fill a huge page stays where it was, and tells where the library begins.
        begin = next(int(f[0].split("-")[0], 16) - int(f[2], 16) for f in code if f[5:] == [str(library)])
        content = library.read_bytes()
        with (folder / "mem").open("rb") as memory:
            for start, end in moved:
                assert (start % 2**21, end % 2**21) == (0, 0)
                memory.seek(start)
                assert memory.read(end - start) == content[start - begin : end - begin]


def test_code_stays_where_it_is_if_the_system_has_no_huge_pages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huge_code, "_HUGE_PAGE_BYTES", tmp_path / "none")
    assert move_code_to_huge_pages(Path(ort.capi.onnxruntime_pybind11_state.__file__)) == 0


@pytest.mark.parametrize("refused", ["mmap", "madvise", "mprotect", "mremap"])
def test_code_stays_where_it_is_if_a_step_is_refused(monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    real = ctypes.CDLL(None)
    names = ("mmap", "madvise", "mprotect", "mremap", "munmap")
    libc = SimpleNamespace(**{name: getattr(real, name) for name in names})
    setattr(libc, refused, lambda *_: huge_code._FAILED)
    monkeypatch.setattr("ctypes.CDLL", lambda _: libc)
    before = Path("/proc/self/maps").read_text()
    assert move_code_to_huge_pages(Path(ort.capi.onnxruntime_pybind11_state.__file__)) == 0
    assert _executable(Path("/proc/self/maps").read_text()) == _executable(before)


def _executable(maps: str) -> list[str]:
    return [line for line in maps.splitlines() if " r-xp " in line]
