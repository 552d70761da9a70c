"""The peers' int8 file takes normalised floats and gives the logits of the served file, which takes pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from benchmarks import peers as command
from benchmarks.harness import float_input
from benchmarks.harness.errors import CannotMeasure
from benchmarks.harness.float_input import take_floats
from benchmarks.harness.installed import Installed
from benchmarks.peer_servers import preprocess as peers
from export.files import ROOT
from export.int8.pipeline import make_int8
from export.model_card import serialize
from export.onnx_graph import Array, Graph
from serve.imaging.normalise import normalise, to_input
from serve.imaging.preprocess import Preprocessing
from serve.imaging.resize import crop
from tests.export.conftest import Network
from tests.export.test_quantize import calibrated
from tests.references import DATA
from tests.small_densenet import SPEC, draw
from tests.tiny_model import CARD, PIXELS

EMBEDDED = ROOT / "models/efficientnet_lite0.onnx"
LEVELS = np.arange(256)


def run(model: bytes, batch: Array) -> Array:
    result: Array = ort.InferenceSession(model).run(["logits"], {"input": batch})[0]
    return result


def card_of(model: onnx.ModelProto) -> dict[str, Any]:
    return {entry.key: json.loads(entry.value) for entry in model.metadata_props}


def pixels_as_logits(mean: list[float], std: list[float]) -> onnx.ModelProto:
    """A model whose output is its input, 8-bit RGB `[N, 224, 224, 3]`."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["batch", 224, 224, 3]) for name in ("input", "logits")
    ]
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["logits"])], "same", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    card = {**CARD, "variant": "int8", "mean": mean, "std": std}
    helper.set_model_props(model, {key: json.dumps(value) for key, value in card.items()})
    return model


def every_level() -> Array:
    """8-bit RGB `[1, 224, 224, 3]` in which each channel has all levels, another one at each place."""
    places = np.arange(224 * 224)[:, None] + np.array([0, 85, 170])
    return (places % 256).astype(np.uint8).reshape(1, 224, 224, 3)


@pytest.fixture(scope="module")
def small_int8(small_densenet: Network) -> bytes:
    """A DenseNet in int8, whose first Conv is padded by the mean colour."""
    model = make_int8(small_densenet.model, small_densenet.architecture, calibrated(small_densenet))
    return serialize(model, {**SPEC.to_card(), "variant": "int8"})


def test_the_embedded_models_logits_are_the_same_to_the_last_bit() -> None:
    served = EMBEDDED.read_bytes()
    model = onnx.load_from_string(served)
    spec = Preprocessing.from_card(card_of(model))
    changed = take_floats(model)
    for photo in sorted((DATA / "photos").iterdir()):
        pixels = peers.crop(photo.read_bytes())
        floats = normalise(pixels.tobytes(), spec)
        np.testing.assert_array_equal(run(changed, floats), run(served, pixels))


def test_a_densenets_logits_are_the_same_to_the_last_bit(small_int8: bytes) -> None:
    changed = take_floats(onnx.load_from_string(small_int8))
    images = draw(20, seed=3)
    pixels = np.stack([np.asarray(crop(image, SPEC)) for image in images])
    floats = np.concatenate([to_input(image, SPEC) for image in images])
    expected = run(small_int8, pixels)
    assert len(set(expected.argmax(1))) > 1
    np.testing.assert_array_equal(run(changed, floats), expected)


def test_every_pixel_that_a_peer_normalises_is_given_back() -> None:
    pixels = every_level()
    assert all(set(pixels[..., channel].flat) == set(LEVELS) for channel in range(3))
    changed = take_floats(pixels_as_logits(CARD["mean"], CARD["std"]))
    np.testing.assert_array_equal(run(changed, peers.normalise(pixels)), pixels)


def test_it_takes_normalised_floats_and_has_the_same_weights() -> None:
    served = onnx.load(EMBEDDED)
    changed = onnx.load_from_string(take_floats(onnx.load(EMBEDDED)))
    [taken] = ort.InferenceSession(changed.SerializeToString()).get_inputs()
    assert (taken.name, taken.type, taken.shape) == ("input", "tensor(float)", ["batch", 3, 224, 224])
    assert card_of(changed) == {**card_of(served), "input": {"datatype": "FP32", "shape": [-1, 3, 224, 224]}}
    before, after = Graph(served).constants, Graph(changed).constants
    assert after.keys() - before.keys() == {"input.scale", "input.zero_point"}
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values, strict=True)
    assert [node.op_type for node in changed.graph.node[:2]] == ["QuantizeLinear", "Transpose"]
    assert [node.op_type for node in changed.graph.node[2:]] == [node.op_type for node in served.graph.node]


def test_a_mean_between_two_levels_is_refused() -> None:
    with pytest.raises(CannotMeasure, match=r"with the mean \[0.5, 0.5, 0.5\] floats do not give back the pixels"):
        take_floats(pixels_as_logits([0.5] * 3, [0.5] * 3))


def test_the_command_writes_the_file_or_says_in_one_line_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "made/peers.onnx"
    statuses = []
    for model in (PIXELS, DATA / "tiny.onnx"):
        monkeypatch.setattr("sys.argv", ["float_input", "--model", str(model), "--output", str(output)])
        statuses.append(float_input.main())
    assert statuses == [0, 1]
    assert output.read_bytes() == take_floats(onnx.load(PIXELS))
    assert capsys.readouterr().err == (
        "float_input: tiny.onnx: it does not take pixels; export it again with make export WEIGHTS=densenet121.pth\n"
    )


def test_peers_get_the_file_that_a_run_makes_and_it_is_measured_as_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "peers.onnx"
    monkeypatch.setattr(command, "_MODEL_INT8", PIXELS)
    monkeypatch.setattr(command, "FLOAT_INPUT", made)
    found = Installed()
    assert command._add_float_input(found)
    assert made.read_bytes() == take_floats(onnx.load(PIXELS))
    assert [(engine.name, engine.model) for engine in found.engines] == [("onnxruntime int8, float input", made)]
    assert not found.missing


def test_without_that_file_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Installed()
    monkeypatch.setattr(command, "FLOAT_INPUT", tmp_path / "peers.onnx")
    monkeypatch.setattr(command, "_MODEL_INT8", tmp_path / "absent.onnx")
    assert not command._add_float_input(found)
    monkeypatch.setattr(command, "_MODEL_INT8", DATA / "tiny.onnx")
    assert not command._add_float_input(found)
    monkeypatch.setattr(command, "EXPORT", tmp_path / "absent/bin/python")
    assert not command._add_float_input(found)
    assert [line.partition(":")[2] for line in found.missing] == [
        " float_input: tiny.onnx: it does not take pixels; export it again with make export WEIGHTS=densenet121.pth",
        " python3 requirements/install.py .venv/export requirements/export.txt",
    ]
    assert not found.engines
