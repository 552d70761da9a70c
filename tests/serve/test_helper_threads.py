"""Tests that threads which share an inference are kept off their caller's CPU."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.imaging.other_process import threads_of
from serve.model import helper_threads
from serve.model.engines import EngineOptions
from serve.model.helper_threads import HelperThreads
from serve.model.session import load_model

CPUS = {0, 3, 5}
CALLER = 3


class Affinity:
    """Records which thread was moved where; ids in `gone` are of threads that have ended."""

    def __init__(self) -> None:
        self.moved: list[tuple[int, set[int]]] = []
        self.gone: set[int] = set()

    def set(self, thread: int, cpus: set[int]) -> None:
        self.moved.append((thread, cpus))
        if thread in self.gone:
            raise ProcessLookupError


@pytest.fixture
def affinity(monkeypatch: pytest.MonkeyPatch) -> Affinity:
    affinity = Affinity()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(CPUS))
    monkeypatch.setattr(os, "sched_setaffinity", affinity.set)
    monkeypatch.setattr(helper_threads, "current_cpu", lambda: CALLER)
    return affinity


@pytest.fixture
def before() -> set[int]:
    return set(threads_of(os.getpid()))


@pytest.fixture
def helper(before: set[int]) -> Iterator[int]:
    """The id of a thread that was started after `before`."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait, daemon=True)
    thread.start()
    yield int(thread.native_id or 0)
    ended.set()
    thread.join()


def test_new_threads_are_kept_off_the_callers_cpu_until_they_are_let_go(
    affinity: Affinity, before: set[int], helper: int
) -> None:
    helpers = HelperThreads(before)
    helpers.let_go()
    helpers.keep_off()
    assert affinity.moved == [(helper, CPUS - {CALLER})]
    for _ in range(2):
        helpers.let_go()
    assert affinity.moved[1:] == [(helper, CPUS)]


def test_they_follow_a_caller_that_has_moved(
    affinity: Affinity, before: set[int], helper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers = HelperThreads(before)
    helpers.keep_off()
    monkeypatch.setattr(helper_threads, "current_cpu", lambda: 5)
    helpers.keep_off()
    assert affinity.moved == [(helper, CPUS - {CALLER}), (helper, CPUS - {5})]


def test_a_thread_that_has_ended_is_forgotten(affinity: Affinity, before: set[int], helper: int) -> None:
    helpers = HelperThreads(before)
    affinity.gone.add(helper)
    helpers.keep_off()
    helpers.let_go()
    assert affinity.moved == [(helper, CPUS - {CALLER})]


def test_nothing_is_moved_where_there_is_one_cpu(
    affinity: Affinity, before: set[int], helper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {CALLER})
    HelperThreads(before).keep_off()
    assert not affinity.moved


def test_a_system_that_forbids_it_changes_nothing(
    before: set[int], helper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(thread: int, cpus: set[int]) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(CPUS))
    monkeypatch.setattr(os, "sched_setaffinity", forbid)
    HelperThreads(before).keep_off()


def test_an_engine_moves_its_own_threads_for_a_lone_image_only(tiny_model: Path, affinity: Affinity) -> None:
    model = load_model(tiny_model, EngineOptions(intra_op_threads=3))  # whose warm-up shares one inference
    moved = {thread for thread, _ in affinity.moved}
    assert len(moved) == 2
    assert moved < set(threads_of(os.getpid()))
    assert [cpus for _, cpus in affinity.moved] == [CPUS - {CALLER}] * 2
    affinity.moved.clear()
    model.logits(model.blank)
    assert not affinity.moved
