"""Runs the fuzz targets on their seeds and on earlier findings, without a fuzzer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.targets import TARGETS, _pool, decoder, inference, multipart, picture
from serve.config.settings import ROOT
from tests.references import pictures


@pytest.fixture(scope="module", autouse=True)
def _closing_the_pool() -> Iterator[None]:
    yield
    _pool().close()
    _pool()._fork_server.close()
    _pool.cache_clear()


SEEDS = sorted((ROOT / "fuzz" / "corpus" / "multipart").iterdir())
INFERENCE_SEEDS = sorted((ROOT / "fuzz" / "corpus" / "inference").iterdir())


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: path.name)
def test_multipart_seeds_give_files_or_raise_a_serve_error(path: Path) -> None:
    multipart(path.read_bytes())


@pytest.mark.parametrize("path", INFERENCE_SEEDS, ids=lambda path: path.name)
def test_inference_seeds_give_an_answer_or_raise_a_serve_error(path: Path) -> None:
    data = path.read_bytes()
    for length in (len(data), len(data) // 2, 20, 0):
        inference(data[:length])


@pytest.mark.parametrize("path", pictures(), ids=lambda path: path.name)
def test_whole_and_truncated_images_give_an_input_or_raise_a_serve_error(path: Path) -> None:
    data = path.read_bytes()
    for length in (len(data), len(data) // 2, 20, 0):
        picture(data[:length])
        decoder(data[:length])


def test_a_target_that_lets_another_error_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("fuzz.targets.decode_upright", fail)
    with pytest.raises(ZeroDivisionError):
        TARGETS["picture"](pictures()[0].read_bytes())
