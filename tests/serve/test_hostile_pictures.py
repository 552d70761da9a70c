"""Malicious images are refused with the limit they exceed, in little time and memory; harmless look-alikes are not."""

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from benchmarks.harness.processes import ProcessTree
from serve.errors import RequestError, TooComplex, TooManyFrames, TooManyPixels
from serve.imaging.claims import require_modest_scans
from serve.imaging.decode import ImageLimits, decode, estimate_decoding_pixels, open_image
from serve.imaging.preprocess import Preprocessing, to_input
from serve.problems import problem_from
from tests.hostile.client import megabytes
from tests.hostile.pictures import (
    ACCEPTED,
    REFUSED,
    animated_gif,
    bmp,
    encoded,
    jpeg_of_scans,
    segment,
    tiff,
    tiff_entries,
)
from tests.server_process import ROOT, ServerProcess, running_server
from tests.tiny_model import PATH as TINY_MODEL

SPEC = Preprocessing(256, "bilinear", 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LIMITS = ImageLimits(50_000_000, 1000, 1.5)
MOST_SECONDS = 2.0
MOST_MEGABYTES = 150


def classify(data: bytes, limits: ImageLimits = LIMITS) -> None:
    to_input(decode(open_image(data, SPEC, limits), reduce_for=SPEC), SPEC, exact=False)


def peak_megabytes() -> float:
    return megabytes(os.getpid(), "VmHWM")


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_image_is_refused_in_little_time_and_memory(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, status = REFUSED[name]
    data = make()
    assert len(data) <= 20 * 2**20
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (proc(5))
    before = peak_megabytes()
    started = time.thread_time()
    with pytest.raises(RequestError) as refusal:
        classify(data)
    assert time.thread_time() - started <= MOST_SECONDS
    assert peak_megabytes() - before <= MOST_MEGABYTES
    problem = problem_from(refusal.value)
    assert problem["status"] == status, problem
    assert re.search("the limit|truncated or corrupt", problem["detail"]), problem
    assert capfd.readouterr() == ("", "")  # no library writes past the log


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(sys.executable, "--model", str(TINY_MODEL), "--log-format", "json") as started:
        yield started


@pytest.mark.parametrize("name", REFUSED)
def test_the_server_refuses_a_hostile_image_quickly_and_goes_on(server: ServerProcess, name: str) -> None:
    make, status = REFUSED[name]
    data = make()
    tree = ProcessTree(server.process.pid)
    photo = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
    with httpx2.Client(base_url=server.url, timeout=30) as client:
        assert client.post("/upload", files={"file": photo}).status_code == 200
        Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
        before, spent = megabytes(server.process.pid, "VmHWM"), tree.cpu_seconds()
        answer = client.post("/upload", files={"file": data})
        assert tree.cpu_seconds() - spent <= MOST_SECONDS + 0.5  # including the time to read 20 MiB
        assert megabytes(server.process.pid, "VmHWM") - before <= MOST_MEGABYTES
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert client.get("/livez", timeout=1).status_code == 200


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_unusual_image_is_accepted(name: str) -> None:
    data = ACCEPTED[name]()
    started = time.thread_time()
    classify(data)
    assert time.thread_time() - started <= MOST_SECONDS


def test_a_message_has_the_limit_and_the_value_that_exceeds_it() -> None:
    with pytest.raises(TooManyFrames, match="The image has 11 frames; the limit is 10 frames"):
        classify(animated_gif(11), ImageLimits(50_000_000, 10))
    classify(animated_gif(10), ImageLimits(50_000_000, 10))
    with pytest.raises(TooComplex, match=r"takes too long to decode; the limit is 0.1 s"):
        classify(bmp(7000, 7000, 8, 1, b"\1\0" * 2_000_000), ImageLimits(50_000_000, 10, 0.1))


def test_scans_are_counted_up_to_the_end_of_the_image() -> None:
    begin, scan, end = b"\xff\xd8", b"\xff\xda\0\2" + b"pixels\xff\0\xff\xd0", b"\xff\xd9"
    require_modest_scans(begin + scan * 40, 50_000_000)
    require_modest_scans(begin + scan * 40 + end + scan * 1000, 50_000_000)  # such as a video after the image
    require_modest_scans(begin + scan * 40 + b"\xff" + end + scan * 1000, 50_000_000)
    require_modest_scans(begin + segment(0xE1, scan * 1000) + scan * 40 + end, 50_000_000)
    with pytest.raises(TooComplex, match="more scans than the limit for its size, 40 scans"):
        require_modest_scans(begin + scan * 41, 50_000_000)
    with pytest.raises(TooComplex, match="more scans than"):  # an end marker within a comment does not count
        require_modest_scans(begin + scan + segment(0xFE, end) + scan * 40, 50_000_000)
    with pytest.raises(TooComplex, match="more segments than the limit, 10000 segments"):
        require_modest_scans(begin + segment(0xFE, b"") * 20_000 + scan * 1000, 50_000_000)


def test_only_jpegs_that_are_decoded_as_they_are_read_count_for_less() -> None:
    """With a scan per component, a decoder keeps all of them until it has read the last."""
    plain = encoded(Image.new("RGB", (1024, 1024)), format="JPEG")
    header = plain.index(b"\xff\xda")
    assert plain[header + 4] == 3  # components in its only scan
    apart = plain[: header + 4] + b"\1" + plain[header + 5 :]
    grey = encoded(Image.new("L", (1024, 1024)), format="JPEG")
    counts = [estimate_decoding_pixels(open_image(data, SPEC, LIMITS), SPEC) for data in (plain, grey, apart)]
    assert counts == [1024**2 // 4, 1024**2 // 4, 1024**2]


@pytest.mark.parametrize("kind", [3, 4, 9])
def test_a_tiff_tile_is_too_large_in_any_integer_type(kind: int) -> None:
    side = 30_000
    entries = [*tiff_entries(9, 9, t324=200, t325=99), (322, kind, 1, side), (323, kind, 1, side)]
    with pytest.raises(TooManyPixels, match="tiles of 30000 × 30000"):
        classify(tiff(entries, bytes(400)))
    with pytest.raises(TooComplex, match="tag 322 is not a number of at most 4 bytes"):
        classify(tiff([*tiff_entries(9, 9), (322, 16, 1, 8), (323, 16, 1, 8)], bytes(400)))


def test_ordinary_progressive_images_of_any_size_are_far_below_the_limit_of_scans() -> None:
    assert jpeg_of_scans(7000, 0).count(b"\xff\xda") == 10
