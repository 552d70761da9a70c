"""The thread for header checks: limited, and without references to cancelled images."""

import asyncio
import gc
import threading
import weakref

import pytest

from serve.errors import QueueFull
from serve.scheduling.header_checks import Inspector


class FakeImage:
    pass


def test_results_and_errors_come_back() -> None:
    async def scenario() -> None:
        inspector = Inspector(2)
        assert await inspector.check(max, 1, 2) == 2
        with pytest.raises(ZeroDivisionError):
            await inspector.check(divmod, 1, 0)
        inspector.close()

    asyncio.run(scenario())


def test_a_cancelled_check_keeps_no_reference_to_its_image() -> None:
    async def scenario() -> None:
        inspector, gate = Inspector(4), threading.Event()
        busy = asyncio.ensure_future(inspector.check(gate.wait, 10))
        await asyncio.sleep(0.05)
        kept = []
        for _ in range(20):
            picture = FakeImage()
            kept.append(weakref.ref(picture))
            waiting = asyncio.ensure_future(inspector.check(id, picture))
            del picture
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        gc.collect()
        assert [each() for each in kept] == [None] * 20
        gate.set()
        assert await busy
        inspector.close()

    asyncio.run(scenario())


def test_the_number_of_waiting_checks_is_limited() -> None:
    async def scenario() -> None:
        inspector, gate = Inspector(2), threading.Event()
        waiting = [asyncio.ensure_future(inspector.check(gate.wait, 10)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="2 wait for their headers to be checked and the limit is 2"):
            await inspector.check(id, None)
        owed = asyncio.ensure_future(inspector.run(max, 1, 2))
        gate.set()
        await asyncio.gather(*waiting)
        assert await owed == 2
        inspector.close()

    asyncio.run(scenario())


def test_its_thread_is_started_in_advance(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        inspector = Inspector(2)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            assert await inspector.check(max, 1, 2) == 2
            with pytest.raises(RuntimeError, match="can't start new thread"):
                Inspector(2)
        inspector.close()

    asyncio.run(scenario())
