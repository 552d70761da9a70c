"""Malicious images are refused in little time and memory, outside the server; harmless look-alikes are not."""

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from benchmarks.harness.processes import ProcessTree
from serve.errors import DecodeTimeout, RequestError, TooManyFrames
from serve.imaging.fork_server import ForkServer
from serve.imaging.limits import ImageLimits, require_format
from serve.imaging.messages import Rules
from serve.imaging.pool import DecoderPool, PoolOptions
from serve.imaging.preprocess import Preprocessing
from serve.problems import problem_from
from tests.hostile.client import megabytes
from tests.hostile.pictures import ACCEPTED, BOUNDED, REFUSED, animated_gif, bmp, jpeg_of_scans
from tests.server_process import ROOT, ServerProcess, running_server
from tests.tiny_model import PATH as TINY_MODEL

SPEC = Preprocessing(256, "bilinear", 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LIMITS = ImageLimits(50_000_000, 1000, 1.5)
OPTIONS = PoolOptions(Rules(SPEC, LIMITS), 20 * 2**20)
MOST_SECONDS = 2.0
MOST_MEGABYTES = 20  # that the server's own process may grow by, beside the upload
COPIES = 2.8  # of an upload's bytes that a form of one file takes at most


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    started = ForkServer()
    yield started
    started.close()


@pytest.fixture(scope="module")
def pool(fork_server: ForkServer) -> Iterator[DecoderPool]:
    started = DecoderPool(fork_server, OPTIONS)
    yield started
    started.close()


@pytest.fixture(scope="module", params=REFUSED)
def refused(request: pytest.FixtureRequest) -> tuple[bytes, int]:
    """A hostile image, which may take seconds to make, and the status that it gets."""
    make, status = REFUSED[request.param]
    return make(), status


def test_a_hostile_image_is_refused_with_its_limit(
    pool: DecoderPool, refused: tuple[bytes, int], capfd: pytest.CaptureFixture[str]
) -> None:
    data, status = refused
    assert len(data) <= 20 * 2**20
    with pytest.raises(RequestError) as refusal:
        pool.decode(data, require_format(data))
    problem = problem_from(refusal.value)
    assert problem["status"] == status, problem
    assert re.search("the limit|truncated or corrupt|not supported", problem["detail"]), problem
    assert capfd.readouterr() == ("", "")  # no library writes past the log


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_unusual_image_is_accepted(pool: DecoderPool, name: str) -> None:
    data = ACCEPTED[name]()
    assert len(pool.decode(data, require_format(data)).pixels) == 224 * 224 * 3


@pytest.mark.parametrize("name", BOUNDED)
def test_an_expensive_image_is_decoded_or_refused_within_the_limits(pool: DecoderPool, name: str) -> None:
    data = BOUNDED[name]()
    assert len(data) <= 20 * 2**20
    started = time.monotonic()
    try:
        assert len(pool.decode(data, require_format(data)).pixels) == 224 * 224 * 3
    except RequestError as refusal:
        assert problem_from(refusal)["status"] in (413, 422)
    assert time.monotonic() - started <= MOST_SECONDS + 5  # the machine may be busy


def test_a_message_has_the_limit_and_the_value_that_exceeds_it(fork_server: ForkServer) -> None:
    def decode(data: bytes, limits: ImageLimits) -> None:
        pool = DecoderPool(fork_server, replace(OPTIONS, rules=Rules(SPEC, limits)))
        try:
            pool.decode(data, require_format(data))
        finally:
            pool.close()

    with pytest.raises(TooManyFrames, match="The image has 11 frames; the limit is 10 frames"):
        decode(animated_gif(11), ImageLimits(50_000_000, 10, 1.5))
    decode(animated_gif(10), ImageLimits(50_000_000, 10, 1.5))
    with pytest.raises(DecodeTimeout, match=r"takes too long to decode; the limit is 0.1 s"):
        decode(bmp(7000, 7000, 8, 1, b"\1\0" * 2_000_000), ImageLimits(50_000_000, 10, 0.1))


def test_ordinary_progressive_images_of_any_size_are_decoded_within_the_limit(pool: DecoderPool) -> None:
    data = jpeg_of_scans(7000, 0)
    assert data.count(b"\xff\xda") == 10
    assert len(pool.decode(data, "JPEG").pixels) == 224 * 224 * 3


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(sys.executable, "--model", str(TINY_MODEL), "--log-format", "json") as started:
        yield started


def test_the_server_refuses_a_hostile_image_quickly_and_goes_on(
    server: ServerProcess, refused: tuple[bytes, int]
) -> None:
    data, status = refused
    tree = ProcessTree(server.process.pid)
    photo = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
    with httpx2.Client(base_url=server.url, timeout=30) as client:
        assert client.post("/upload", files={"file": photo}).status_code == 200
        Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
        before, spent = megabytes(server.process.pid, "VmHWM"), tree.cpu_seconds()
        started = time.monotonic()
        answer = client.post("/upload", files={"file": data})
        assert time.monotonic() - started <= MOST_SECONDS + 5  # the machine may be busy
        assert tree.cpu_seconds() - spent <= MOST_SECONDS
        assert megabytes(server.process.pid, "VmHWM") - before <= MOST_MEGABYTES + COPIES * len(data) / 1e6
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert client.get("/livez", timeout=1).status_code == 200
