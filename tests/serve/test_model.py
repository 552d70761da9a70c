"""A model file is served only if it describes itself and the description is true."""

from pathlib import Path

import numpy as np
import pytest

from serve.config.settings import MODELS, Config
from serve.errors import ModelError
from serve.imaging.normalise import normalise
from serve.imaging.preprocess import Preprocessing
from serve.model.classifier import load_classifier
from serve.model.engines import CpuEngine, EngineOptions
from serve.model.session import load_model
from tests.tiny_model import PATH, PIXELS

EMBEDDED = MODELS / "efficientnet_lite0.onnx"


def changed(tiny_model: Path, folder: Path, old: bytes, new: bytes) -> Path:
    """Writes the tiny model with some bytes replaced by as many others."""
    content = tiny_model.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path = folder / "changed.onnx"
    path.write_bytes(content.replace(old, new))
    return path


def test_a_loaded_model_gives_finite_logits_for_any_batch(tiny_model: Path) -> None:
    model = load_model(tiny_model, EngineOptions())
    assert (model.name, model.input_side, model.class_count) == ("tiny", 224, 1000)
    for size in (1, 3):
        logits = model.logits(np.ones((size, 3, 224, 224), np.float32))
        assert logits.shape == (size, 1000)
        assert logits.dtype == np.float32
        assert np.isfinite(logits).all()


def test_a_file_says_what_it_takes_and_both_give_the_same_logits() -> None:
    floats, pixels = load_model(PATH, EngineOptions()), load_model(PIXELS, EngineOptions())
    assert (floats.takes_pixels, pixels.takes_pixels) == (False, True)
    assert (floats.blank.shape, floats.blank.dtype) == ((1, 3, 224, 224), np.float32)
    assert (pixels.blank.shape, pixels.blank.dtype) == ((1, 224, 224, 3), np.uint8)
    assert (floats.input_side, pixels.input_side) == (224, 224)
    spec = Preprocessing.from_card(pixels.card)
    crops = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    wanted = floats.logits(np.concatenate([normalise(crop.tobytes(), spec) for crop in crops]))
    np.testing.assert_allclose(pixels.logits(crops), wanted, rtol=0, atol=1e-4)


def test_the_embedded_model_takes_pixels() -> None:
    model = load_model(EMBEDDED, EngineOptions())
    assert model.takes_pixels
    assert model.card["input"] == {"datatype": "UINT8", "shape": [-1, 224, 224, 3]}


def test_threads_are_set_and_inter_op_is_one(tiny_model: Path) -> None:
    model = load_model(tiny_model, EngineOptions(2))
    assert isinstance(model.engine, CpuEngine)
    for session, threads in ((model.engine.session, 1), (model.engine._latency_session, 2)):
        options = session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    alone = load_model(tiny_model, EngineOptions())
    assert isinstance(alone.engine, CpuEngine)
    assert alone.engine._latency_session is alone.engine.session


@pytest.mark.parametrize("entry", [b"name", b"variant", b"class_count", b"resize", b"mean", b"std"])
def test_a_file_that_lacks_an_entry_is_refused_by_its_name(tiny_model: Path, tmp_path: Path, entry: bytes) -> None:
    field = b"\x0a" + bytes([len(entry)]) + entry + b"\x12"  # protobuf: key, then its value
    path = changed(tiny_model, tmp_path, field, field.replace(entry, b"x" * len(entry)))
    with pytest.raises(ModelError, match=f"changed.onnx: its metadata lacks '?{entry.decode()}"):
        load_classifier(Config(model=str(path)))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"tiny"', b"'tiny'", "not JSON"),
        (b"crop\x12\x03224", b"crop\x12\x03192", "crop=192, but its input is 224 pixels wide"),
        (b"class_count\x12\x041000", b"class_count\x12\x041001", "as its metadata says"),
    ],
)
def test_a_file_that_contradicts_its_metadata_is_refused(
    tiny_model: Path, tmp_path: Path, old: bytes, new: bytes, words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        load_classifier(Config(model=str(changed(tiny_model, tmp_path, old, new))))


def test_a_model_without_finite_logits_is_refused_by_the_warm_up(tiny_model: Path, tmp_path: Path) -> None:
    content = tiny_model.read_bytes()
    weights = content.index(b"\x4a\xe0\x5d") + 3  # raw_data, 12,000 bytes
    path = tmp_path / "nan.onnx"
    path.write_bytes(content[:weights] + np.full(3000, np.nan, "<f4").tobytes() + content[weights + 12_000 :])
    with pytest.raises(ModelError, match="did not give 1000 finite logits"):
        load_model(path, EngineOptions())


def test_missing_empty_and_corrupt_files_are_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none.onnx: no such file or directory; make it with 'make export'"):
        load_model(tmp_path / "none.onnx", EngineOptions())
    with pytest.raises(ModelError, match="is a directory"):
        load_model(tmp_path, EngineOptions())
    for content in (b"", b"rubbish", tiny_model.read_bytes()[:5000]):
        path = tmp_path / "corrupt.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"corrupt\.onnx"):
            load_model(path, EngineOptions())
