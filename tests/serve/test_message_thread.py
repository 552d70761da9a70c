"""The thread for messages: limited, and without references to cancelled ones."""

import asyncio
import gc
import threading
import weakref

import pytest

from serve.errors import QueueFull
from serve.scheduling.message_thread import MessageThread


class FakeImage:
    pass


def test_results_and_errors_come_back() -> None:
    async def scenario() -> None:
        thread = MessageThread(2)
        assert await thread.run_limited(max, 1, 2) == 2
        with pytest.raises(ZeroDivisionError):
            await thread.run_limited(divmod, 1, 0)
        thread.close()

    asyncio.run(scenario())


def test_a_cancelled_check_keeps_no_reference_to_it() -> None:
    async def scenario() -> None:
        thread, gate = MessageThread(4), threading.Event()
        busy = asyncio.ensure_future(thread.run_limited(gate.wait, 10))
        await asyncio.sleep(0.05)
        kept = []
        for _ in range(20):
            picture = FakeImage()
            kept.append(weakref.ref(picture))
            waiting = asyncio.ensure_future(thread.run_limited(id, picture))
            del picture
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        gc.collect()
        assert [each() for each in kept] == [None] * 20
        gate.set()
        assert await busy
        thread.close()

    asyncio.run(scenario())


def test_the_number_of_waiting_checks_is_limited() -> None:
    async def scenario() -> None:
        thread, gate = MessageThread(2), threading.Event()
        waiting = [asyncio.ensure_future(thread.run_limited(gate.wait, 10)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="2 wait to be read and the limit is 2"):
            await thread.run_limited(id, None)
        owed = asyncio.ensure_future(thread.run(max, 1, 2))
        gate.set()
        await asyncio.gather(*waiting)
        assert await owed == 2
        thread.close()

    asyncio.run(scenario())


def test_its_thread_is_started_in_advance(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        thread = MessageThread(2)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            assert await thread.run_limited(max, 1, 2) == 2
            with pytest.raises(RuntimeError, match="can't start new thread"):
                MessageThread(2)
        thread.close()

    asyncio.run(scenario())
