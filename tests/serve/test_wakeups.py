"""Tests that a thread's wake-ups are deferred, and no longer, where the system and the operator allow it."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import pytest

from serve.scheduling.wakeups import Wakeups

T = TypeVar("T")


def on_a_thread(function: Callable[[], T]) -> T:
    """Calls a function on a thread of the usual policy that ends after it."""
    usual = partial(os.sched_setscheduler, 0, os.SCHED_OTHER, os.sched_param(0))
    with ThreadPoolExecutor(1, initializer=usual) as pool:
        return pool.submit(function).result()


def test_wakeups_are_deferred_and_no_longer() -> None:
    def policies() -> list[int]:
        wakeups = Wakeups()
        found = [os.sched_getscheduler(0)]
        for wanted in (True, True, False, False, True):
            wakeups.defer(wanted)
            found.append(os.sched_getscheduler(0))
        return found

    other, batch = os.SCHED_OTHER, os.SCHED_BATCH
    assert on_a_thread(policies) == [other, batch, batch, other, other, batch]


def test_a_policy_that_was_set_from_outside_is_kept() -> None:
    def kept() -> list[int]:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        wakeups = Wakeups()
        found = []
        for wanted in (True, False):
            wakeups.defer(wanted)
            found.append(os.sched_getscheduler(0))
        return found

    assert on_a_thread(kept) == [os.SCHED_IDLE] * 2


@pytest.mark.parametrize("call", ["sched_getscheduler", "sched_setscheduler"])
def test_a_system_that_does_not_allow_it_is_no_error(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    called = threading.Event()

    def forbidden(*_: object) -> None:
        called.set()
        raise PermissionError

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(os, call, forbidden)
        pool.submit(lambda: Wakeups().defer(True)).result()
    assert called.is_set()
