"""Tests calls on an event loop for other threads: their order, their number, and what is left of them."""

import asyncio
import gc
import threading
from functools import partial
from pathlib import Path

from serve.scheduling.loop_calls import LoopCalls

MORE_THAN_A_PIPE_HOLDS = 100_000


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_calls_of_threads_are_made_in_order_on_the_loops_thread() -> None:
    made: list[tuple[int, int]] = []

    async def scenario() -> None:
        calls = LoopCalls.of_running_loop()
        last = asyncio.Event()

        def work() -> None:
            for number in range(3):
                calls.add(lambda number=number: made.append((number, threading.get_ident())))  # type: ignore[misc]
            calls.add(last.set)

        thread = threading.Thread(target=work)
        thread.start()
        await last.wait()
        thread.join()

    asyncio.run(scenario())
    assert made == [(number, threading.get_ident()) for number in range(3)]


def test_none_is_lost_while_the_loop_is_busy() -> None:
    made: list[int] = []

    async def scenario() -> None:
        calls = LoopCalls.of_running_loop()
        last = asyncio.Event()
        for number in range(MORE_THAN_A_PIPE_HOLDS):
            calls.add(partial(made.append, number))
        calls.add(last.set)
        await last.wait()
        last.clear()
        calls.add(last.set)
        await last.wait()

    asyncio.run(scenario())
    assert made == list(range(MORE_THAN_A_PIPE_HOLDS))


def test_a_loop_has_one_and_another_loop_another() -> None:
    async def pair() -> tuple[LoopCalls, LoopCalls]:
        return LoopCalls.of_running_loop(), LoopCalls.of_running_loop()

    first, again = asyncio.run(pair())
    other, _ = asyncio.run(pair())
    assert first is again is not other


def test_after_the_loops_end_nothing_is_called_and_no_descriptor_stays_open() -> None:
    made: list[int] = []

    async def calls_of_loop() -> LoopCalls:
        return LoopCalls.of_running_loop()

    gc.collect()  # loops of other tests
    before = descriptors()
    calls = asyncio.run(calls_of_loop())
    calls.add(partial(made.append, 1))
    assert not made
    assert len(descriptors()) == len(before) + 2
    del calls
    gc.collect()
    assert descriptors() == before
