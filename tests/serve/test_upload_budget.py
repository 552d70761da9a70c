"""Limits on the rate of an upload and on the bytes of all uploads together."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from serve.errors import UploadsFull, UploadTooSlow
from serve.scheduling.upload_budget import UploadBudget


async def chunks(*parts: bytes, pause: float = 0.0) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(pause)
        yield part


async def read(arrivals: UploadBudget, source: AsyncIterator[bytes]) -> tuple[bytes, int]:
    """The bytes received, and how many counted against the budget at the end."""
    with arrivals.track() as arrival:
        received = b"".join([chunk async for chunk in arrival.limit_rate(source)])
        return received, arrivals.held


def test_chunks_pass_through_and_are_counted_until_the_end() -> None:
    arrivals = UploadBudget(10, 1.0)
    assert asyncio.run(read(arrivals, chunks(b"abc", b"defg"))) == (b"abcdefg", 7)
    assert arrivals.held == 0


def test_an_upload_beyond_the_budget_is_refused_and_its_bytes_are_freed() -> None:
    arrivals = UploadBudget(10, 1.0)

    async def scenario() -> None:
        with arrivals.track() as other:
            async for _ in other.limit_rate(chunks(b"123456")):
                pass
            with pytest.raises(UploadsFull, match="the limit for all together is 10 bytes"):
                await read(arrivals, chunks(b"1234", b"5"))
            assert arrivals.held == 6
        await read(arrivals, chunks(b"1234567890"))

    asyncio.run(scenario())
    assert arrivals.held == 0


def test_an_idle_upload_is_evicted_and_an_active_one_is_not() -> None:
    arrivals = UploadBudget(10, 30.0)

    async def silent() -> None:
        async def source() -> AsyncIterator[bytes]:
            yield b"12345678"
            await asyncio.sleep(60)

        with pytest.raises(
            UploadsFull, match="silent for more than 1 s, and others needed its room: the limit for all"
        ):
            await read(arrivals, source())

    async def scenario() -> None:
        stalled = asyncio.ensure_future(silent())
        await asyncio.sleep(0.1)
        with pytest.raises(UploadsFull, match="There is no room for this upload"):
            await read(arrivals, chunks(b"1234"))
        await asyncio.sleep(1.0)
        coming = asyncio.ensure_future(read(arrivals, chunks(*[b"x"] * 6, pause=0.05)))
        await asyncio.sleep(0.2)
        assert (await coming)[1] == 6
        await asyncio.wait_for(stalled, 1)

    asyncio.run(scenario())
    assert arrivals.held == 0
    assert not arrivals.receiving


def test_a_refused_upload_is_not_evicted_again() -> None:
    """Its suspended generator lives on as long as the error is referenced."""
    arrivals = UploadBudget(10, 30.0)

    async def scenario() -> None:
        with pytest.raises(ZeroDivisionError) as kept, arrivals.track() as arrival:
            async for _ in arrival.limit_rate(chunks(b"12345678", b"9")):
                raise ZeroDivisionError
        assert (arrivals.held, arrivals.receiving) == (0, set())
        await asyncio.sleep(1.1)
        assert await read(arrivals, chunks(b"1234567890")) == (b"1234567890", 10)
        assert arrivals.held == 0
        del kept

    asyncio.run(scenario())


def test_an_upload_may_time_out_in_the_moment_it_is_evicted() -> None:
    arrivals = UploadBudget(10, 0.1)

    async def scenario() -> None:
        async def silent() -> None:
            async def source() -> AsyncIterator[bytes]:
                yield b"12345678"
                await asyncio.sleep(60)

            with pytest.raises((UploadsFull, UploadTooSlow)):
                await read(arrivals, source())

        stalled = asyncio.ensure_future(silent())
        await asyncio.sleep(0.05)
        (arrival,) = arrivals.receiving
        when = arrival._waiting.when()
        assert when
        done: list[None] = []
        asyncio.get_running_loop().call_at(when + 1e-9, lambda: done.append(arrival.evict()))
        await stalled
        assert done == [None]
        assert arrivals.held == 0

    asyncio.run(scenario())


def test_a_fast_upload_may_not_pause_for_longer() -> None:
    arrivals = UploadBudget(10**8, 0.1)

    async def source() -> AsyncIterator[bytes]:
        yield bytes(10**7)
        await asyncio.sleep(60)

    began = time.monotonic()
    with pytest.raises(UploadTooSlow):
        asyncio.run(read(arrivals, source()))
    assert time.monotonic() - began < 5


def test_an_upload_that_arrives_byte_by_byte_is_refused() -> None:
    arrivals = UploadBudget(1000, 0.1)
    with pytest.raises(UploadTooSlow, match=r"too slowly: \d+ bytes in 0 s; the limit is 0.1 s"):
        asyncio.run(read(arrivals, chunks(*[b"x"] * 100, pause=0.01)))
    assert arrivals.held == 0


def test_a_large_upload_gets_more_time() -> None:
    arrivals = UploadBudget(10**6, 0.1)
    received, _ = asyncio.run(read(arrivals, chunks(*[bytes(4096)] * 6, pause=0.04)))  # 100 KB a second
    assert len(received) == 6 * 4096


@pytest.mark.parametrize("more", [True, False])
def test_an_evicted_upload_ends_even_if_its_last_bytes_have_arrived(more: bool) -> None:
    async def scenario() -> None:
        arrivals = UploadBudget(100, 30.0)
        with arrivals.track() as arrival:

            async def chunks() -> AsyncIterator[bytes]:
                yield b"a"
                arrival.evict()
                if more:
                    yield b"b"

            with pytest.raises(UploadsFull, match="others needed its room"):
                async for _ in arrival.limit_rate(chunks()):
                    pass
        assert arrivals.held == 0
        assert not arrivals.receiving

    asyncio.run(scenario())


def test_each_chunk_waits_for_the_pacer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        arrivals, turns = UploadBudget(100, 30.0), 0

        async def turn() -> None:
            nonlocal turns
            turns += 1

        monkeypatch.setattr(arrivals.pacer, "wait_for_turn", turn)

        async def chunks() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"

        with arrivals.track() as arrival:
            assert [(chunk, turns) async for chunk in arrival.limit_rate(chunks())] == [(b"a", 1), (b"b", 2)]

    asyncio.run(scenario())
