"""The time budget for reading: slow reads are spread over iterations of the event loop, in order, and none is lost."""

import asyncio
import time
from typing import Any, cast

import pytest

from serve.server.read_budget import BudgetedProtocol, ReadBudget


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


class Connection:
    """A fake that takes a millisecond to read a byte."""

    def __init__(self, clock: Clock, log: list[bytes]) -> None:
        self.clock, self.log = clock, log
        self.transport = self.flow = self
        self.reading, self.closing = True, False
        self.read_paused = False

    def read(self, data: bytes) -> None:
        self.clock.now += len(data) / 1000
        self.log.append(data)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def three(clock: Clock, log: list[bytes]) -> list[Any]:
    return [Connection(clock, log) for _ in range(3)]


def test_quick_reads_are_done_at_once(clock: Clock) -> None:
    async def scenario() -> None:
        log: list[bytes] = []
        reading = ReadBudget()
        for connection, data in zip(three(clock, log), (b"aaa", b"bbb", b"ccc"), strict=True):
            reading.read(connection, data)
        assert log == [b"aaa", b"bbb", b"ccc"]

    asyncio.run(scenario())


def test_slow_reads_wait_for_later_iterations_in_order(clock: Clock) -> None:
    async def scenario() -> None:
        log: list[bytes] = []
        reading = ReadBudget()
        first, second, third = three(clock, log)
        reading.read(first, b"1" * 12)
        reading.read(second, b"2" * 12)
        reading.read(third, b"3" * 4)
        assert [connection.reading for connection in (first, second, third)] == [True, False, False]
        assert len(log) == 1
        await asyncio.sleep(0)
        assert len(log) == 2
        reading.read(first, b"4" * 4)  # the first connection has received more
        assert [connection.reading for connection in (first, second, third)] == [False, True, False]
        await asyncio.sleep(0)
        assert [data[:1] for data in log] == [b"1", b"2", b"3", b"4"]
        assert first.reading
        assert third.reading

    asyncio.run(scenario())


def test_closed_connections_are_skipped_and_paused_ones_stay_paused(clock: Clock) -> None:
    async def scenario() -> None:
        log: list[bytes] = []
        reading = ReadBudget()
        first, gone, stopped = three(clock, log)
        reading.read(first, b"1" * 12)
        reading.read(gone, b"2")
        reading.read(stopped, b"3")
        gone.closing = stopped.read_paused = True
        await asyncio.sleep(0)
        assert log == [b"1" * 12, b"3"]
        assert gone.reading  # it may be lingering, until the client has read the response
        assert not stopped.reading

    asyncio.run(scenario())


def test_only_bodies_and_large_heads_use_the_budget(clock: Clock) -> None:
    class Protocol:
        data_received = BudgetedProtocol.data_received

        def __init__(self) -> None:
            self.read_budget, self.cycle = self, cast(Any, None)
            self.log: list[str] = []

        def read(self, *arguments: Any) -> None:
            self.log.append("now" if len(arguments) == 1 else "within the budget")

    class Cycle:
        more_body = True

    protocol = cast(Any, Protocol())
    protocol.data_received(b"GET /livez HTTP/1.1\r\n\r\n")
    protocol.data_received(b"x" * 5000)
    protocol.cycle = Cycle()
    protocol.data_received(b"x")
    protocol.cycle.more_body = False
    protocol.data_received(b"GET /livez HTTP/1.1\r\n\r\n")
    assert protocol.log == ["now", "within the budget", "within the budget", "now"]
