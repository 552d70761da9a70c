"""Tests that items wait for the slow lane in turn."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from serve.errors import QueueFull
from serve.scheduling.slow_lane import SlowLane


def item(seconds: float = 60.0) -> Any:
    return SimpleNamespace(deadline=time.monotonic() + seconds, abandoned=False)


def test_a_newcomer_does_not_overtake_those_that_wait() -> None:
    lane, first, second, third = SlowLane(1, 10), item(), item(), item()
    assert lane.enter(first)
    assert not lane.enter(second)
    lane.leave(0.1)
    assert not lane.enter(third)
    order: list[Any] = []

    def wait(task: Any) -> None:
        lane.wait(task)
        order.append(task)
        lane.leave(0.1)

    last = threading.Thread(target=wait, args=(third,))
    last.start()
    time.sleep(0.1)
    assert order == []  # a place is free, but it is another's turn
    wait(second)
    last.join(10)
    assert order == [second, third]
    assert lane.enter(item())


def test_one_that_gives_up_lets_the_next_one_go_on() -> None:
    lane, hurried, patient = SlowLane(1, 10), item(0.0), item()
    assert lane.enter(item())
    assert not lane.enter(hurried)
    assert not lane.enter(patient)
    with pytest.raises(QueueFull):
        lane.wait(hurried)
    lane.leave(0.1)
    lane.wait(patient)
