"""Decoders of HEIC may start threads and nothing else that others may not, and see one image each."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serve.errors import DecoderDied, DecodeTimeout, RequestError, TooComplex
from serve.imaging.fork_server import ForkServer
from serve.imaging.formats import ACCEPTED_FORMATS, HEIC
from serve.imaging.limits import ImageLimits
from serve.imaging.other_process import threads_of
from serve.imaging.pool import DecoderPool
from serve.imaging.sandbox import ISOLATED, SEALED
from tests.heic.pictures import FOLDER
from tests.hostile.takeover import FATAL, FATAL_WITHOUT_THREADS, MARK, OTHERS
from tests.serve.test_decoders import OPTIONS, RULES, MakePool, children_of, deaths_of, decode, encoded, process_of
from tests.server_process import wait_for

RGB = (FOLDER / "rgb.heic").read_bytes()


def attack(name: str) -> bytes:
    return RGB + MARK + name.encode()


def threads_in(pid: int) -> int:
    try:
        return len(threads_of(pid))
    except OSError:  # it has just ended
        return 0


@pytest.mark.parametrize("name", sorted(FATAL))
def test_a_decoder_is_killed_by_a_forbidden_call(pool: DecoderPool, name: str) -> None:
    assert pool.state == SEALED
    expected, deaths = decode(pool, RGB), deaths_of(pool)
    with pytest.raises(DecoderDied, match=r"^The HEIC image ended the process that was decoding it\.$"):
        decode(pool, attack(name))
    assert deaths == {"forbidden_call": 1}
    np.testing.assert_array_equal(decode(pool, RGB), expected)


@pytest.mark.parametrize("name", ["clone of a thread", "thread", "set_robust_list", "rseq", "clone3"])
def test_the_decoders_of_other_formats_still_may_start_no_thread(pool: DecoderPool, name: str) -> None:
    assert name in FATAL_WITHOUT_THREADS
    decode(pool, RGB)
    deaths = deaths_of(pool)
    with pytest.raises(DecoderDied, match="The BMP image"):
        decode(pool, encoded() + MARK + name.encode())
    assert deaths == {"forbidden_call": 1}


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("rubbish on its pipe", DecoderDied, "protocol"),
        ("half a reply", DecoderDied, "protocol"),
        ("a crop without a size", DecoderDied, "protocol"),
        ("everything written to", DecoderDied, "protocol"),
        ("spinning", DecodeTimeout, "overrun"),
        ("spinning in a thread", DecodeTimeout, "overrun"),
        ("waiting", DecodeTimeout, "overrun"),
        ("crashing", DecoderDied, "crash"),
        ("opening a file in a thread", DecoderDied, "forbidden_call"),
        ("raising its limit", DecoderDied, "forbidden_call"),
        ("memory", TooComplex, None),
    ],
)
def test_other_attacks_of_a_decoder_have_no_further_effect(
    pool_with: MakePool, fork_server: ForkServer, name: str, error: type[RequestError], reason: str | None
) -> None:
    assert name in OTHERS
    pool = pool_with(replace(OPTIONS, rules=replace(RULES, limits=ImageLimits(50_000_000, 1000, 0.3))))
    expected, deaths = decode(pool, RGB), deaths_of(pool)
    with pytest.raises(error):
        decode(pool, attack(name))
    assert deaths == ({reason: 1} if reason else {})
    np.testing.assert_array_equal(decode(pool, RGB), expected)
    wait_for(lambda: max(map(threads_in, children_of(fork_server.pid))) == 1)  # no thread is left


@pytest.mark.parametrize("reuse", [("JPEG", "PNG"), ACCEPTED_FORMATS])
def test_every_image_has_a_decoder_of_its_own(pool_with: MakePool, reuse: tuple[str, ...]) -> None:
    pool = pool_with(replace(OPTIONS, reuse=reuse))
    decode(pool, encoded("JPEG"))
    kept = [each.pid for each in [*pool._used, *pool._fresh] if not each.wait_ready()]
    pids = [process_of(pool, RGB) for _ in range(5)]
    assert len(set(pids)) == 5
    assert not set(pids) & set(kept)
    assert [each.pid for each in [*pool._used, *pool._fresh]] == kept  # those without threads are left alone


def test_a_decoder_has_one_thread_until_it_decodes_and_the_fork_server_no_other(
    pool: DecoderPool, fork_server: ForkServer
) -> None:
    decoder = pool._take(HEIC)
    decoder.wait_ready()
    for pid in (fork_server.pid, decoder.pid):
        assert threads_of(pid) == [pid]
        assert "libde265" in Path(f"/proc/{pid}/maps").read_text()
    decoder.retire()


def test_where_sealing_is_not_possible_decoders_are_isolated() -> None:
    server = ForkServer("tests.hostile.unsealable:act")
    try:
        pool = DecoderPool(server, OPTIONS)
        assert pool.state == ISOLATED
        assert decode(pool, RGB).std() > 10
        pool.close()
    finally:
        server.close()


def test_all_threads_of_a_decoder_that_steps_aside_have_a_lower_priority(
    pool: DecoderPool, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered: dict[int, int] = {}
    original: Callable[[int, int, int], None] = os.setpriority

    def record_call(kind: int, thread: int, value: int) -> None:
        original(kind, thread, value)
        lowered[thread] = os.getpriority(kind, thread)

    monkeypatch.setattr(os, "setpriority", record_call)
    pool.on_slow = lambda _: True
    started = time.monotonic()
    with pytest.raises(DecodeTimeout):
        decode(pool, attack("spinning in a thread"))
    assert time.monotonic() - started < 10
    assert list(lowered.values()) == [os.getpriority(os.PRIO_PROCESS, fork_server.pid) + 3] * 2
