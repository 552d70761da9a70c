"""Decoding in confined processes gives the same pixels, and an image that ends its decoder affects no other."""

import io
import os
import re
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve.config.parsers import FORMATS
from serve.errors import (
    DecoderDied,
    DecodeTimeout,
    NotReady,
    QueueFull,
    RequestError,
    StartError,
    TooComplex,
    TooManyFrames,
    TooManyPixels,
    UndecodableImage,
    UnsupportedVariety,
)
from serve.imaging.decoders import InProcessDecoder
from serve.imaging.fork_server import ForkServer
from serve.imaging.formats import ACCEPTED_FORMATS, webp_size
from serve.imaging.limits import ImageLimits, require_format
from serve.imaging.messages import Rules
from serve.imaging.pool import REQUIRED, DecoderPool, PoolOptions
from serve.imaging.preprocess import Preprocessing
from serve.imaging.sandbox import ISOLATED, SEALED
from tests.hostile.deaths import children_of, ended, status_of
from tests.hostile.takeover import FATAL, FATAL_WITHOUT_THREADS, MARK, OTHERS, SECRET, SECRET_HALVES
from tests.references import PICTURES
from tests.server_process import wait_for

SPEC = Preprocessing(256, "bilinear", 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RULES = Rules(SPEC, ImageLimits(50_000_000, 1000, 1.5))
OPTIONS = PoolOptions(RULES, 20 * 2**20, streams=2)

MakePool = Callable[..., DecoderPool]


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer("tests.hostile.takeover:act")
    yield server
    server.close()


@pytest.fixture
def pool_with(fork_server: ForkServer) -> Iterator[MakePool]:
    """Makes a pool with some options changed."""
    pools: list[DecoderPool] = []

    def make(options: PoolOptions = OPTIONS, server: ForkServer = fork_server) -> DecoderPool:
        pools.append(DecoderPool(server, options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def pool(pool_with: MakePool) -> DecoderPool:
    return pool_with()


def encoded(format_name: str = "BMP", size: tuple[int, int] = (300, 280), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize(size).save(buffer, format_name, **options)
    return buffer.getvalue()


def attack(name: str) -> bytes:
    return encoded() + MARK + name.encode()


def decode(pool: DecoderPool, data: bytes) -> np.ndarray:
    crop = pool.decode(data, require_format(data))
    return np.frombuffer(crop.pixels, np.uint8).reshape(SPEC.crop, SPEC.crop, 3)


def deaths_of(pool: DecoderPool) -> Counter[str]:
    deaths: Counter[str] = Counter()
    pool.on_death = lambda reason: deaths.update([reason])
    return deaths


def process_of(pool: DecoderPool, data: bytes) -> int:
    """The process that the pool decodes an image with."""
    seen: list[int] = []
    take = pool._take

    def noting(format_name: str) -> object:
        decoder = take(format_name)
        decoder.wait_ready()
        seen.append(decoder.pid)
        return decoder

    pool._take = noting  # type: ignore[method-assign,assignment]
    decode(pool, data)
    pool._take = take  # type: ignore[method-assign]
    return seen[-1]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("upright", [True, False])
def test_the_pixels_are_those_of_decoding_in_process(pool_with: MakePool, exact: bool, upright: bool) -> None:
    rules = replace(RULES, exact=exact, apply_orientation=upright)
    pool, here = pool_with(replace(OPTIONS, rules=rules)), InProcessDecoder(rules)
    assert pool.state == SEALED
    large = [encoded(name, (1600, 1200)) for name in ("JPEG", "PNG", "WebP", "AVIF", "TIFF", "GIF", "BMP")]
    for data in [*(path.read_bytes() for path in sorted(PICTURES.iterdir())), *large]:
        name = require_format(data)
        assert pool.decode(data, name).pixels == here.decode(data, name).pixels


def test_large_images_of_every_format_decode_under_the_seal(pool: DecoderPool) -> None:
    for name in ("JPEG", "PNG", "WebP", "AVIF", "TIFF", "BMP"):
        options = {"speed": 10} if name == "AVIF" else {"compression": "tiff_lzw"} if name == "TIFF" else {}
        data = encoded(name, (2600, 2500) if name == "BMP" else (4100, 4000), **options)
        assert decode(pool, data).std() > 10


def test_the_largest_webp_fits_into_the_memory_by_default(pool_with: MakePool) -> None:
    """Not into the time on every machine: its 150 MB are new, and a hypervisor may give them slowly."""
    pool = pool_with(replace(OPTIONS, rules=replace(RULES, limits=replace(RULES.limits, decode_seconds=10.0))))
    buffer = io.BytesIO()
    Image.new("RGB", (10_000, 5000), "navy").save(buffer, "WEBP", method=0)
    assert decode(pool, buffer.getvalue()).shape == (SPEC.crop, SPEC.crop, 3)


def test_a_decoder_that_sleeps_steps_aside_and_is_ended(pool: DecoderPool) -> None:
    calls, deaths = list[float](), deaths_of(pool)
    pool.on_slow = lambda _: not calls.append(time.monotonic())
    started = time.monotonic()
    with pytest.raises(DecodeTimeout):
        decode(pool, attack("waiting"))
    assert 0.1 < calls[0] - started < 0.5
    assert 0.4 < time.monotonic() - started < 1.5
    assert deaths == {"overrun": 1}


def test_a_decoder_that_uses_cpu_time_between_images_is_ended(pool_with: MakePool) -> None:
    pool = pool_with(replace(OPTIONS, reuse=("BMP",), streams=1))
    deaths = deaths_of(pool)
    first = process_of(pool, encoded() + MARK + b"spinning later")
    time.sleep(0.5)
    assert process_of(pool, encoded()) != first
    assert deaths == {"protocol": 1}


def test_a_decoder_has_no_capability(pool: DecoderPool) -> None:
    data = encoded("JPEG")
    kept = process_of(pool, data)
    assert len(re.findall(r"^Cap(?:Inh|Prm|Eff):\t0+$", status_of(kept), re.MULTILINE)) == 3
    assert process_of(pool, data) == kept


def test_messages_are_the_same_as_those_of_decoding_in_process(pool_with: MakePool) -> None:
    rules = replace(RULES, limits=ImageLimits(300_000, 1, 1.5))
    pool, here = pool_with(replace(OPTIONS, rules=rules)), InProcessDecoder(rules)
    deep = io.BytesIO()
    Image.new("F", (9, 9)).save(deep, "TIFF")
    for data, error in (
        (encoded("PNG", (600, 600)), TooManyPixels),
        (encoded("PNG", (10, 900)), TooManyPixels),  # once resized
        (encoded("WebP", (700, 500)), TooManyPixels),
        (encoded("WebP", (700, 500), lossless=True), TooManyPixels),
        (encoded("WebP", (700, 500), exif=b"Exif"), TooManyPixels),
        ((PICTURES / "animated.gif").read_bytes(), TooManyFrames),
        (encoded("PNG")[:-300], UndecodableImage),
        (deep.getvalue(), UnsupportedVariety),
        (b"\xff\xd8\xff", UndecodableImage),
    ):
        messages = []
        for decoders in (pool, here):
            with pytest.raises(error) as refusal:
                decoders.decode(data, require_format(data))
            messages.append(str(refusal.value))
        assert messages[0] == messages[1]


def test_processes_have_one_thread_and_no_numpy(pool: DecoderPool, fork_server: ForkServer) -> None:
    decode(pool, encoded("JPEG"))
    decoders = [each.pid for each in [*pool._used, *pool._fresh] if not each.wait_ready()]
    assert set(decoders) <= set(children_of(fork_server.pid))
    assert decoders
    for pid in (fork_server.pid, *decoders):
        assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "_imaging" in maps
        assert "numpy" not in maps
        assert not re.search("onnxruntime|openblas", maps)
        assert Path(f"/proc/{pid}/environ").read_bytes().strip(b"\0") == b""
    for pid in decoders:
        descriptors = {entry.name for entry in Path(f"/proc/{pid}/fd").iterdir()}
        assert descriptors == {"3", "4", "5"}


@pytest.mark.parametrize("name", sorted({**FATAL, **FATAL_WITHOUT_THREADS}))
def test_a_decoder_is_killed_by_a_forbidden_call(pool: DecoderPool, name: str) -> None:
    expected, deaths = decode(pool, encoded()), deaths_of(pool)
    with pytest.raises(DecoderDied, match=r"^The BMP image ended the process that was decoding it\.$"):
        decode(pool, attack(name))
    assert deaths == {"forbidden_call": 1}
    np.testing.assert_array_equal(decode(pool, encoded()), expected)


@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("rubbish on its pipe", DecoderDied, "protocol"),
        ("half a reply", DecoderDied, "protocol"),
        ("a reply of no known code", DecoderDied, "protocol"),
        ("a crop without a size", DecoderDied, "protocol"),
        ("a limit that is not exceeded", DecoderDied, "protocol"),
        ("a second report", DecoderDied, "protocol"),
        ("large twice", DecoderDied, "protocol"),
        ("a report after large", DecoderDied, "protocol"),
        ("large and silence", DecodeTimeout, "overrun"),
        ("everything written to", DecoderDied, "protocol"),
        ("spinning", DecodeTimeout, "overrun"),
        ("waiting", DecodeTimeout, "overrun"),
        ("leaving", DecoderDied, "crash"),
        ("crashing", DecoderDied, "crash"),
        ("closing its pipe", DecoderDied, "forbidden_call"),
        ("raising its limit", DecoderDied, "forbidden_call"),
        ("spinning in a thread", DecoderDied, "forbidden_call"),
        ("memory", TooComplex, None),
    ],
)
def test_other_attacks_of_a_decoder_have_no_further_effect(
    pool_with: MakePool, name: str, error: type[RequestError], reason: str | None
) -> None:
    assert name in OTHERS
    pool = pool_with(replace(OPTIONS, rules=replace(RULES, limits=ImageLimits(50_000_000, 1000, 0.3))))
    expected, deaths = decode(pool, encoded()), deaths_of(pool)
    started = time.monotonic()
    with pytest.raises(error):
        decode(pool, attack(name))
    assert time.monotonic() - started < 10
    assert deaths == ({reason: 1} if reason else {})
    np.testing.assert_array_equal(decode(pool, encoded()), expected)


def test_a_fresh_decoder_has_nothing_of_an_earlier_image(pool_with: MakePool) -> None:
    secret = encoded() + b"".join(SECRET_HALVES) * 20_000  # more than a smaller image overwrites
    fresh = pool_with(replace(OPTIONS, reuse=()))
    for _ in range(4):
        decode(fresh, secret)
        decode(fresh, attack("searching its heap"))
    # One that is reused has, which shows that the search finds it; SECURITY.md says so.
    reused = pool_with(replace(OPTIONS, reuse=("BMP",), streams=1))
    decode(reused, secret)
    with pytest.raises(DecoderDied):
        decode(reused, attack("searching its heap"))


def test_an_earlier_image_leaves_nothing_in_the_shared_memory(pool_with: MakePool) -> None:
    pool = pool_with(replace(OPTIONS, reuse=("BMP",), streams=1))
    for length in (1, 3 * 2**20):
        secret = encoded() + SECRET * length if length == 1 else encoded() + bytes(length) + SECRET
        first = process_of(pool, secret)
        assert process_of(pool, attack("looking back")) == first


def test_a_jpeg_or_png_has_a_used_decoder_and_other_formats_a_fresh_one(pool: DecoderPool) -> None:
    jpeg, png, bmp = (encoded(name) for name in ("JPEG", "PNG", "BMP"))
    first = process_of(pool, jpeg)
    assert process_of(pool, png) == first
    fresh = {process_of(pool, bmp) for _ in range(5)}
    assert len(fresh) == 5
    assert first not in fresh
    assert process_of(pool, jpeg) == first


def test_an_idle_decoder_or_the_fork_server_that_is_killed_costs_no_image(pool_with: MakePool) -> None:
    server = ForkServer()
    try:
        pool = pool_with(server=server)
        expected = decode(pool, encoded("JPEG"))
        for pid in (process_of(pool, encoded("JPEG")), server.pid):
            os.kill(pid, signal.SIGKILL)
            wait_for(partial(ended, pid))
            for _ in range(3):
                np.testing.assert_array_equal(decode(pool, encoded("JPEG")), expected)
            decode(pool, encoded())
    finally:
        pool.close()
        server.close()


def test_decoders_end_with_the_fork_server_and_it_leaves_nothing() -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    server = ForkServer()
    pool = DecoderPool(server, OPTIONS)
    decode(pool, encoded("JPEG"))
    decode(pool, encoded())
    pids = [server.pid, *children_of(server.pid)]
    assert len(pids) > 2
    pool.close()
    server.close()
    wait_for(lambda: all(map(ended, pids)))
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_many_threads_at_once_get_their_own_pixels(pool: DecoderPool) -> None:
    pictures = [encoded(name, (300 + 10 * n, 280)) for n in range(4) for name in ("JPEG", "BMP")]
    expected = [decode(pool, data) for data in pictures]
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(10):
            which = (number + turn) % len(pictures)
            if not np.array_equal(decode(pool, pictures[which]), expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_a_large_image_waits_for_another_and_small_ones_do_not(pool: DecoderPool) -> None:
    large, small = encoded("PNG", (2600, 2000)), encoded("PNG")
    decode(pool, small)
    done = threading.Event()
    with pool._large:
        thread = threading.Thread(target=lambda: (decode(pool, large), done.set()))
        thread.start()
        decode(pool, small)
        assert not done.wait(0.3)
    assert done.wait(10)
    thread.join()


def test_a_decoder_has_no_more_memory_than_it_may(pool_with: MakePool) -> None:
    data = encoded("PNG", (2600, 2000))
    pool = pool_with(replace(OPTIONS, memory=16 * 2**20))
    with pytest.raises(TooComplex, match="Decoding the image takes more memory than the limit, 16 MB"):
        decode(pool, data)
    decode(pool, encoded("PNG"))


def test_where_sealing_is_not_possible_decoders_are_isolated_unless_it_is_required() -> None:
    server = ForkServer("tests.hostile.unsealable:act")
    try:
        pool = DecoderPool(server, OPTIONS)
        assert pool.state == ISOLATED
        assert decode(pool, encoded()).std() > 10
        pool.close()
        with pytest.raises(StartError, match="sandbox=required"):
            DecoderPool(server, replace(OPTIONS, sandbox=REQUIRED))
    finally:
        server.close()


@pytest.mark.parametrize("sandbox", ["auto", REQUIRED])
def test_a_fork_server_that_cannot_start_decoders_fails_the_start(sandbox: str) -> None:
    server = ForkServer("tests.hostile.missing:act")
    try:
        with pytest.raises(StartError, match="no decoder process can be started"):
            DecoderPool(server, replace(OPTIONS, sandbox=sandbox))
    finally:
        server.close()


def test_after_many_deaths_in_a_row_forks_are_spaced_out_but_a_decoder_at_hand_is_used(pool: DecoderPool) -> None:
    jpeg, bmp = encoded("JPEG"), encoded()
    for data in (jpeg, bmp):
        decode(pool, data)

    def seconds(data: bytes, error: type[RequestError] | None = None) -> float:
        pool._deaths_in_a_row = 25
        started = time.monotonic()
        with pytest.raises(error) if error else nullcontext():
            decode(pool, data)
        return time.monotonic() - started

    while pool._fresh:
        seconds(attack("crashing"), DecoderDied)
    assert seconds(jpeg) < 0.5
    assert pool._deaths_in_a_row == 0
    assert seconds(bmp) > 0.9
    assert seconds(bmp) > 0.9 or pool._fresh


def test_an_image_that_is_alone_may_use_any_cpu(pool: DecoderPool) -> None:
    data = encoded("JPEG")
    cpus = []
    for is_alone in (False, True, True, False):
        pool.is_alone = lambda is_alone=is_alone: is_alone  # type: ignore[misc]
        cpus.append(len(os.sched_getaffinity(process_of(pool, data))))
    everywhere = len(os.sched_getaffinity(0))
    assert cpus == [1, everywhere, everywhere, 1]


def test_a_decoder_is_replaced_after_many_images(pool: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.imaging.pool._MOST_IMAGES", 3)
    processes = [process_of(pool, encoded("JPEG")) for _ in range(7)]
    assert [processes.count(pid) for pid in dict.fromkeys(processes)] == [3, 3, 1]


def test_a_decoder_of_a_large_image_is_ended_with_it(pool: DecoderPool) -> None:
    large, small = encoded("PNG", (2600, 2000)), encoded("PNG")
    first = process_of(pool, large)
    assert ended(first)
    assert process_of(pool, small) != first


def test_without_descriptors_a_decoder_at_hand_is_used(pool: DecoderPool) -> None:
    expected = decode(pool, encoded())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        np.testing.assert_array_equal(decode(pool, encoded()), expected)
        while pool._fresh:
            decode(pool, encoded())
        with pytest.raises(NotReady):
            decode(pool, encoded())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_array_equal(decode(pool, encoded()), expected)


def test_nothing_starts_once_the_fork_server_is_closed() -> None:
    server = ForkServer()
    pool = DecoderPool(server, OPTIONS)
    pool.close()
    server.close()
    with pytest.raises(NotReady):
        decode(pool, encoded())
    assert ended(server.pid)


def test_a_slow_start_fails_and_does_not_cost_the_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.imaging.decoder_process._START_SECONDS", 0.0)
    server = ForkServer()
    try:
        with pytest.raises(StartError, match="no decoder process can be started"):
            DecoderPool(server, OPTIONS)
    finally:
        server.close()


def test_without_memfd_the_memory_is_an_unlinked_file(pool_with: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "memfd_create", forbidden)
    expected = decode(pool_with(), encoded())
    assert expected.std() > 10


@pytest.mark.parametrize(("width", "height"), [(1, 1), (300, 7), (7, 16_383)])
@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif"}], ids=["VP8", "VP8L", "VP8X"])
def test_a_webps_size_is_read_without_a_decoder(width: int, height: int, options: dict[str, object]) -> None:
    data = encoded("WebP", (width, height), **options)
    assert webp_size(data) == (width, height)
    assert webp_size(data[:12] + b"ALPH" + data[16:]) is None


@pytest.fixture
def slow_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.imaging.decoder_process._SLOW_SECONDS", 0.0)


@pytest.mark.usefixtures("slow_at_once")
@pytest.mark.parametrize("waits", [False, True])
def test_an_image_that_takes_long_steps_aside_once(pool: DecoderPool, waits: bool) -> None:
    data, calls = encoded("JPEG"), list[object]()
    expected = decode(pool, data)

    def on_slow(stop: Callable[[], None] | None) -> bool:
        calls.append(stop)
        if waits:
            assert stop
            stop()
        return True

    pool.on_slow = on_slow
    first = process_of(pool, data)
    assert len(calls) == 1
    np.testing.assert_array_equal(decode(pool, data), expected)
    pool.on_slow = lambda _: False
    assert process_of(pool, data) != first  # its priority is lower for good


@pytest.mark.usefixtures("slow_at_once")
def test_an_image_for_which_there_is_no_room_ends_its_decoder(pool: DecoderPool) -> None:
    def refuse(stop: object) -> bool:
        raise QueueFull("full")

    deaths = deaths_of(pool)
    pool.on_slow = refuse
    with pytest.raises(QueueFull, match="full"):
        decode(pool, encoded())
    pool.on_slow = lambda _: False
    decode(pool, encoded())
    assert not deaths


def test_a_decoder_runs_on_its_threads_cpu_until_it_steps_aside_at_a_lower_priority(
    pool: DecoderPool, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []
    pool.on_slow = lambda _: not calls.append(time.monotonic())
    niceness: list[int] = []
    cpus: list[set[int]] = []
    original, set_affinity = os.setpriority, os.sched_setaffinity

    def record_call(kind: int, pid: int, value: int) -> None:
        original(kind, pid, value)
        niceness.append(os.getpriority(kind, pid))

    def record_affinity(pid: int, wanted: set[int]) -> None:
        set_affinity(pid, wanted)
        cpus.append(os.sched_getaffinity(pid))

    monkeypatch.setattr(os, "setpriority", record_call)
    monkeypatch.setattr(os, "sched_setaffinity", record_affinity)
    started = time.monotonic()
    with pytest.raises(DecodeTimeout):
        decode(pool, attack("spinning"))
    assert len(calls) == 1
    assert calls[0] - started >= 0.14
    assert niceness == [os.getpriority(os.PRIO_PROCESS, fork_server.pid) + 3]
    assert [len(each) for each in cpus] == [1, len(os.sched_getaffinity(0))]


def test_a_large_image_steps_aside_if_it_has_to_wait(pool: DecoderPool) -> None:
    calls, done = list[object](), threading.Event()
    pool.on_slow = lambda stop: not calls.append(stop)
    with pool._large:
        thread = threading.Thread(target=lambda: (decode(pool, encoded("PNG", (2600, 2000))), done.set()))
        thread.start()
        wait_for(lambda: bool(calls))
        assert not done.is_set()
    assert done.wait(10)
    thread.join()


@pytest.mark.usefixtures("slow_at_once")
def test_an_image_that_stepped_aside_and_got_no_cpu_may_be_sent_again(
    pool: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.imaging.decoder_process._WALL_SHARE", 0.2)
    monkeypatch.setattr("serve.imaging.decoder_process._WALL_SLACK", 0.0)
    pool.on_slow = lambda _: True
    with pytest.raises(QueueFull, match="too busy for an image that takes long"):
        decode(pool, attack("waiting"))


def test_every_accepted_format_can_be_named_for_reuse() -> None:
    assert tuple(name.lower() for name in ACCEPTED_FORMATS) == FORMATS
