"""Feature maps and embeddings read from a model file, and entries that do not describe them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from serve.errors import ModelError
from serve.model import engines, ort_sessions
from serve.model.engines import CudaEngine, Engine, EngineOptions, OpenVinoEngine
from serve.model.features import Features
from serve.model.session import Model, load_model
from tests.serve.test_engines import FakeOpenVino, images
from tests.tiny_model import MAPPED, THREE_CLASSES

Outputs = dict[str, Any]
LOGITS_AND_MAPS = ("logits", "squares")


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(MAPPED, EngineOptions())


def features_of(model: Model) -> Features:
    assert model.features
    return model.features


def test_the_mean_of_a_map_plus_the_bias_is_the_logit(model: Model) -> None:
    features, batch = features_of(model), images(3)
    logits, maps = model.run(batch)
    assert np.array_equal(logits, model.logits(batch))
    for image_logits, image_maps in zip(logits, maps, strict=True):
        for index, logit in enumerate(image_logits):
            found = features.class_map(image_maps, index)
            assert (found.shape, found.dtype) == ((7, 7), np.float32)
            assert found.mean() + features.bias(index) == pytest.approx(logit, abs=1e-5)


def test_a_map_is_greatest_where_the_class_is(model: Model) -> None:
    """The class is green, the image has it in one of the 7 × 7 squares."""
    batch = np.zeros((1, 224, 224, 3), np.uint8)
    batch[0, 2 * 32 : 3 * 32, 5 * 32 : 6 * 32, 1] = 255
    _, (maps,) = model.run(batch)
    found = features_of(model).class_map(maps, 1)
    assert np.unravel_index(found.argmax(), found.shape) == (2, 5)


def test_an_embedding_is_the_mean_over_all_places(model: Model) -> None:
    features = features_of(model)
    _, maps = model.run(images(2))
    assert features.length == model.card["embedding"]["length"] == 3
    for each in maps:
        found = features.embedding(each)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, each.mean((1, 2)), rtol=0, atol=1e-6)


def test_a_file_without_the_entry_has_no_features() -> None:
    model = load_model(THREE_CLASSES, EngineOptions())
    assert model.features is None
    with pytest.raises(ValueError, match="the model three has no feature maps"):
        model.run(np.zeros((1, 3, 224, 224), np.float32))


@pytest.fixture(params=["openvino", "cuda"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Both divide a batch; on onnxruntime's CPU provider, because neither may be there."""
    if request.param == "openvino":
        fake = FakeOpenVino()
        monkeypatch.setattr(engines, "openvino_session", fake.session)
        monkeypatch.setattr(engines, "run", fake.run)
        return OpenVinoEngine(MAPPED, EngineOptions(max_batch=4))
    monkeypatch.setattr(engines, "cuda_session", lambda path: ort_sessions.cpu_session(path, 1))
    return CudaEngine(MAPPED, EngineOptions(max_batch=4), device="cpu")


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_engines_that_divide_a_batch_return_both_outputs_of_each_image(
    engine: Engine, model: Model, count: int
) -> None:
    batch = images(count)
    wanted = ort_sessions.run(model.engine.session, batch, LOGITS_AND_MAPS)
    for found in (engine.run(batch, outputs=LOGITS_AND_MAPS), engine.run(batch)):
        for got, values in zip(found, wanted, strict=False):
            np.testing.assert_allclose(got, values, rtol=0, atol=1e-5)
    assert len(engine.run(batch)) == 1


def outputs(axis: int = 1, kind: type = np.float32) -> Outputs:
    """What a network of five channels and three classes gives for an image, channels at `axis`."""
    random = np.random.default_rng(1)
    maps = random.standard_normal((1, 5, 2, 4)).astype(np.float32)
    scale, shift, weight_scale = (random.uniform(0.5, 2, size).astype(np.float32) for size in (5, 5, (3, 1)))
    weight: Any = random.integers(-9, 9, (3, 5)).astype(kind)
    bias = random.standard_normal(3).astype(np.float32)
    logits = (weight_scale * weight) @ (scale * maps[0].mean((1, 2)) + shift) + bias
    return {
        "logits": logits[None],
        "maps": np.moveaxis(maps, 1, axis),
        "weight": weight,
        "bias": bias,
        "scale": scale,
        "shift": shift,
        "weight_scale": weight_scale,
    }


def read(entry: Any, values: Outputs) -> Features:
    def fetch(names: Sequence[str]) -> list[Any]:
        return [values[name] for name in names]

    return Features.from_entry(entry, list(values), fetch)


FULL = {key: key for key in ("maps", "weight", "bias", "scale", "shift", "weight_scale")}


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize(("layout", "axis"), [("NCHW", 1), ("NHWC", 3)])
def test_scales_and_shifts_are_applied_in_both_layouts(layout: str, axis: int, kind: type) -> None:
    values = outputs(axis, kind)
    features = read({**FULL, "layout": layout}, values)
    for index, logit in enumerate(values["logits"][0]):
        found = features.class_map(values["maps"][0], index)
        assert found.shape == (2, 4)
        assert found.mean() + features.bias(index) == pytest.approx(logit, abs=1e-4)
    pooled = values["scale"] * values["maps"][0].mean(tuple({0, 1, 2} - {axis - 1})) + values["shift"]
    np.testing.assert_allclose(features.embedding(values["maps"][0]), pooled, rtol=0, atol=1e-6)


def test_maps_in_8_bits_are_dequantised() -> None:
    values, step, zero_point = outputs(), 0.05, 100
    stored = np.clip(np.rint(values["maps"] / step) + zero_point, 0, 255).astype(np.uint8)
    exact = (stored.astype(np.float32) - zero_point) * np.float32(step)
    pooled = values["scale"] * exact[0].mean((1, 2)) + values["shift"]
    logits = (values["weight_scale"] * values["weight"]) @ pooled + values["bias"]
    entry = {**FULL, "layout": "NCHW", "step": step, "zero_point": zero_point}
    features = read(entry, {**values, "maps": stored, "logits": logits[None]})
    np.testing.assert_allclose(features.embedding(stored[0]), pooled, rtol=0, atol=1e-5)
    for index, logit in enumerate(logits):
        assert features.class_map(stored[0], index).mean() + features.bias(index) == pytest.approx(logit, abs=1e-4)


def test_what_an_entry_leaves_out_changes_nothing() -> None:
    values = outputs()
    values["logits"] = values["maps"].mean((2, 3)) @ values["weight"].T
    features = read({"maps": "maps", "layout": "NCHW", "weight": "weight"}, values)
    assert features.bias(2) == 0
    np.testing.assert_allclose(features.embedding(values["maps"][0]), values["maps"][0].mean((1, 2)), atol=1e-6)


def with_nan(values: Outputs) -> None:
    values["bias"][1] = np.nan


def wrong_length(values: Outputs) -> None:
    values["shift"] = values["shift"][:4]


def transposed(values: Outputs) -> None:
    values["weight"] = values["weight"].T


def of_texts(values: Outputs) -> None:
    values["bias"] = np.array(["a", "b", "c"])


def of_halves(values: Outputs) -> None:
    values["maps"] = values["maps"].astype(np.float16)


def flat(values: Outputs) -> None:
    values["maps"] = values["maps"].mean((2, 3))


def of_another_network(values: Outputs) -> None:
    values["maps"] = values["maps"] + 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("none", "is 'none'; it needs layout, maps, weight"),
        ([], r"is \[\]; it needs"),
        ({"maps": "maps", "layout": "NCHW"}, "it needs layout, maps, weight"),
        ({**FULL, "layout": "CHW"}, "has layout='CHW'; set it to NCHW or NHWC"),
        ({**FULL, "layout": ["NCHW"]}, r"has layout=\['NCHW'\]"),
        (FULL, "has layout=None"),
        ({**FULL, "layout": "NCHW", "bias": "offset"}, "has bias='offset', which is not an output of the graph"),
        ({**FULL, "layout": "NCHW", "maps": 7}, "has maps=7, which is not an output"),
        ({**FULL, "layout": "NCHW", "scale": ["scale"]}, r"has scale=\['scale'\], which is not an output"),
        ({**FULL, "layout": "NCHW", "step": "0.1"}, "has step='0.1'; set it to a number, or leave it out"),
        ({**FULL, "layout": "NCHW", "step": 10**400}, "has step=1000"),
        ({**FULL, "layout": "NCHW", "step": 0.5}, "does not add up to the logits"),
        ({**FULL, "layout": "NCHW", "zero_point": True}, "has zero_point=True; set it to a number"),
        ({**FULL, "layout": "NCHW", "zero_point": float("nan")}, "has zero_point=nan"),
        ({**FULL, "layout": "NHWC"}, "which does not hold 4 numbers"),
        (with_nan, "has bias='bias', which does not hold 3 numbers"),
        (wrong_length, "has shift='shift', which does not hold 5 numbers"),
        (transposed, "has weight='weight', which does not hold 3 × 5 numbers"),
        (of_texts, "has bias='bias', which does not hold 3 numbers"),
        (of_halves, r"has maps='maps', which is float16 \[1, 5, 2, 4\]; name an output that is FP32 or UINT8"),
        (flat, r"has maps='maps', which is float32 \[1, 5\]"),
        (of_another_network, "does not add up to the logits"),
    ],
)
def test_an_entry_that_is_wrong_is_refused_in_one_line(change: Any, words: str) -> None:
    values, entry = outputs(), {**FULL, "layout": "NCHW"}
    if callable(change):
        change(values)
    else:
        entry = change
    with pytest.raises(ModelError, match=words) as raised:
        read(entry, values)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("its metadata entry 'features' ")


def test_outputs_that_onnxruntime_cannot_return_are_refused() -> None:
    def fetch(names: Sequence[str]) -> list[Any]:
        raise RuntimeError("unsupported\ntype")

    with pytest.raises(ModelError, match="names outputs that cannot be read; make them FP32, FP16 or INT8"):
        Features.from_entry({**FULL, "layout": "NCHW"}, list(outputs()), fetch)


def test_outputs_that_are_no_tensors_are_refused() -> None:
    with pytest.raises(ModelError, match="names outputs that are no tensors; make them FP32, FP16 or INT8"):
        Features.from_entry({**FULL, "layout": "NCHW"}, list(outputs()), lambda names: [cast(Any, [])] * len(names))


def test_the_message_about_a_file_names_it_and_what_to_do(tmp_path: Path) -> None:
    content = MAPPED.read_bytes()
    path = tmp_path / "mine.onnx"
    path.write_bytes(content.replace(b'"maps": "squares"', b'"maps": "circles"'))
    assert path.read_bytes() != content
    with pytest.raises(ModelError) as raised:
        load_model(path, EngineOptions())
    assert str(raised.value) == (
        f"model {path}: its metadata entry 'features' has maps='circles', which is not an output of the graph; make it "
        "one; docs/model-files.md shows how to make it servable; 'make export WEIGHTS=PATH' makes one from weights"
    )
