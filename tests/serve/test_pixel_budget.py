"""The limit on pixels decoded at once: in order, and small images do not wait for large ones."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from serve.scheduling.pixel_budget import PixelBudget

LONG = 30.0


def started(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)  # or a failed test would hang
    thread.start()
    time.sleep(0.005)  # so that they ask in this order
    return thread


def test_units_are_given_in_order_and_never_more_than_there_are() -> None:
    room = PixelBudget(10, reserve=0)
    held, most, order = 0, 0, []
    lock = threading.Lock()

    def use(name: str, units: int) -> None:
        nonlocal held, most
        with room.acquire(units):
            with lock:
                order.append(name)
                held += min(units, 10)
                most = max(most, held)
            time.sleep(0.02)
            with lock:
                held -= min(units, 10)

    threads = [started(use, "small", 4), started(use, "huge", 99)]
    threads += [started(use, f"later {number}", 4) for number in range(4)]
    for thread in threads:
        thread.join(5)
    assert order[:2] == ["small", "huge"]  # not overtaken by small ones that would fit
    assert len(order) == 6
    assert most == 10


def test_small_requests_neither_wait_for_large_ones_nor_delay_them() -> None:
    room = PixelBudget(10, reserve=4)
    entered = []

    def enter(name: str, units: int, leave: threading.Event) -> None:
        with room.acquire(units):
            entered.append(name)
            assert leave.wait(LONG)

    over = threading.Event()
    with ExitStack() as held:
        held.enter_context(room.acquire(10))
        waiting = started(enter, "large", 7, over)
        held.enter_context(room.acquire(3))
        third = started(enter, "beyond the reserve", 2, over)
        time.sleep(0.05)
        assert entered == []
    over.set()
    for thread in (waiting, third):
        thread.join(5)
    assert sorted(entered) == ["beyond the reserve", "large"]


def test_small_requests_may_use_all_units_while_no_large_one_waits() -> None:
    room = PixelBudget(10, reserve=4)
    with ExitStack() as held:
        for _ in range(7):
            held.enter_context(room.acquire(2))
        waiting = started(lambda: held.enter_context(room.acquire(2)))
        time.sleep(0.05)
        assert waiting.is_alive()
        held.close()
        waiting.join(5)
        assert not waiting.is_alive()
