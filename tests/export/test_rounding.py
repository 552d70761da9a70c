"""Weights are rounded so that a layer's output changes least, to one of the two nearest integers."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from export.errors import CalibrationError, QuantizationError
from export.int8.calibration import Calibration, encode, load
from export.int8.pipeline import make_int8, record_rounding, rewrite
from export.int8.quant_params import PAIR_LIMIT, kernel_order, pair_sums, quantize_weights
from export.int8.rounding import choose_rounding, observe_covariances
from export.onnx_graph import Array, Graph
from tests.export.conftest import Network
from tests.export.test_quantize import assert_cannot_saturate, calibrated, conv_weights, logits
from tests.small_densenet import batches

RANDOM = np.random.default_rng(0)


def covariance_of(inputs: Array) -> Array:
    """Of `[group, sample, n]`."""
    centred = inputs - inputs.mean(1, keepdims=True)
    product: Array = centred.transpose(0, 2, 1) @ centred / inputs.shape[1]
    return product


def correlated(group: int, size: int, samples: int = 2000) -> Array:
    """Inputs of which each is a mixture of a few others, `[group, sample, n]`."""
    few = max(2, size // 4)
    mixed: Array = RANDOM.normal(size=(group, samples, few)) @ RANDOM.normal(size=(group, few, size))
    return mixed + 0.1 * RANDOM.normal(size=(group, samples, size))


def output_errors(weights: Array, quantized: Array, scales: Array, inputs: Array) -> Array:
    """The mean square of what rounding adds to each output channel beside its mean, `[out]`."""
    group, _, size = inputs.shape
    lost = kernel_order(weights - quantized * scales[:, None, None, None]).reshape(group, -1, size)
    errors: Array = (inputs @ lost.transpose(0, 2, 1)).var(1).reshape(-1)
    return errors


@pytest.mark.parametrize(
    ("shape", "group"), [((16, 40, 1, 1), 1), ((8, 6, 3, 3), 1), ((12, 1, 3, 3), 12), ((6, 150, 1, 1), 2)]
)
def test_a_layers_output_changes_less_than_by_rounding_to_the_nearest(shape: tuple[int, ...], group: int) -> None:
    weights = RANDOM.normal(size=shape)
    inputs, others = correlated(group, int(np.prod(shape[1:])), 4000).reshape(group, 2, 2000, -1).transpose(1, 0, 2, 3)
    nearest, scales = quantize_weights(weights)
    chosen, same_scales = quantize_weights(weights, 0.0, lambda scaled: choose_rounding(scaled, covariance_of(inputs)))
    np.testing.assert_array_equal(scales, same_scales)
    before, after = (output_errors(weights, quantized, scales, others) for quantized in (nearest, chosen))
    assert after.mean() < 0.5 * before.mean()
    assert np.abs(weights / scales[:, None, None, None] - chosen).max() < 1  # one of the two nearest
    assert pair_sums(chosen.astype(np.float64)).max() <= PAIR_LIMIT


def test_inputs_that_vary_alone_are_rounded_to_the_nearest() -> None:
    weights = RANDOM.normal(size=(5, 30, 1, 1))
    alone = np.diag(RANDOM.uniform(0.1, 2, 30))[None]
    for covariance in (alone, np.zeros((1, 30, 30))):
        assert not np.unpackbits(choose_rounding(weights * 50, covariance)).any()


def test_weights_are_rounded_as_the_textbook_says() -> None:
    """One input after another, the later moved by -error · (H⁻¹)ⱼₖ / (H⁻¹)ⱼⱼ of the inputs that are left."""
    size = 140  # more than a block
    weights = RANDOM.normal(size=(3, size, 1, 1)) * 20
    covariance = covariance_of(correlated(1, size))
    left, rounded = weights[:, :, 0, 0].copy(), np.empty((3, size))
    damped = covariance[0] + 1e-3 * np.diag(covariance[0]).mean() * np.eye(size)
    for column in range(size):
        low, high = (end(weights[:, column, 0, 0]) for end in (np.floor, np.ceil))
        rounded[:, column] = np.clip(np.rint(left[:, column]), low, high)
        inverse = np.linalg.inv(damped[column:, column:])
        left[:, column:] -= np.outer(left[:, column] - rounded[:, column], inverse[0] / inverse[0, 0])
    bits = np.unpackbits(choose_rounding(weights, covariance), count=weights.size).reshape(3, size)
    np.testing.assert_array_equal(bits, rounded != np.rint(weights[:, :, 0, 0]))
    assert 0.05 < bits.mean() < 0.5


def test_no_choice_of_roundings_can_saturate() -> None:
    """Not even all up or all down, of weights whose scaled values are whole numbers but for float rounding."""
    grid = RANDOM.integers(-6, 7, (64, 24, 1, 1)) / 6
    for weights in (grid, RANDOM.normal(size=(64, 9, 3, 3)), np.full((2, 8, 1, 1), 0.1), grid * np.pi):
        for pick in (np.floor, np.ceil, lambda scaled: np.where(RANDOM.random(scaled.shape) < 0.5, 0, 1)):

            def choose(scaled: Array, pick: Any = pick) -> Array:
                wanted = pick(scaled)
                return np.packbits(kernel_order(wanted != np.rint(scaled)))

            quantized, scales = quantize_weights(weights, 0.0, choose)
            exact = weights / scales[:, None, None, None]
            assert np.abs(quantized - exact).max() <= 1
            assert pair_sums(quantized.astype(np.float64)).max() <= PAIR_LIMIT
            assert np.abs(quantized.astype(int)).max() <= 127


def every_window(conv: onnx.NodeProto, kernel: Array, values: Array) -> Array:
    """What the Conv reads at every position, from onnxruntime's own Conv with one output channel for each tap."""
    group = next((entry.i for entry in conv.attribute if entry.name == "group"), 1)
    _, inside, height, width = kernel.shape
    size = inside * height * width
    taps = np.eye(size, dtype=np.float32).reshape(height, width, inside, size).transpose(3, 2, 0, 1)
    node = onnx.NodeProto()
    node.CopyFrom(conv)
    del node.input[:]
    node.input.extend(["x", "w"])
    graph = helper.make_graph(
        [node],
        "windows",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(conv.output[0], onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.tile(taps, (group, 1, 1, 1)), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    seen = ort.InferenceSession(model.SerializeToString()).run(None, {"x": values})[0]
    windows: Array = seen.transpose(1, 0, 2, 3).reshape(group, size, -1).transpose(0, 2, 1)
    return windows


@pytest.mark.parametrize("name", ["small_densenet", "small_mobilenet"])
def test_covariances_are_those_of_what_each_conv_reads(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.export.test_calibration import every_tensor

    network: Network = request.getfixturevalue(name)
    monkeypatch.setattr("export.int8.rounding._POSITIONS", 10**6)  # all of them
    images = network.calibration_images[:5]
    calibration = calibrated(network)
    graph = Graph(network.model)
    rewrite(graph, calibration.ranges)
    told: list[int] = []
    covariances = observe_covariances(graph, [images[:2], images[2:]], calibration.means, told.append)
    assert told == [1, 2]
    values = every_tensor(graph.to_model(), images)
    convs = graph.of_type("Conv")
    assert list(covariances) == [conv.output[0] for conv in convs]
    for conv in convs:
        wanted = covariance_of(every_window(conv, graph.constants[conv.input[1]], values[conv.input[0]]))
        np.testing.assert_allclose(covariances[conv.output[0]], wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_some_positions_stand_for_all(small_densenet: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.int8.rounding._POSITIONS", 32)
    calibration = calibrated(small_densenet)
    graph = Graph(small_densenet.model)
    rewrite(graph, calibration.ranges)
    images = small_densenet.calibration_images
    few = observe_covariances(graph, batches(images), calibration.means, lambda done: None)
    monkeypatch.setattr("export.int8.rounding._POSITIONS", 10**6)
    every = observe_covariances(graph, batches(images), calibration.means, lambda done: None)
    for name, wanted in every.items():
        assert 0 < np.linalg.norm(few[name] - wanted) < 0.3 * np.linalg.norm(wanted)


def with_rounding(network: Network) -> Calibration:
    calibration = calibrated(network)
    record_rounding(
        network.model,
        network.architecture,
        network.calibration_batches,
        calibration,
        lambda done, total: None,
    )
    return calibration


@pytest.mark.parametrize(("name", "share"), [("small_densenet", 0.97), ("small_mobilenet", 0.9)])
def test_chosen_roundings_lower_the_error_of_a_network_and_cannot_saturate(
    name: str, share: float, request: pytest.FixtureRequest
) -> None:
    network: Network = request.getfixturevalue(name)
    calibration = with_rounding(network)
    wanted = logits(network.model, network.other_images)
    chosen = make_int8(network.model, network.architecture, calibration)
    assert_cannot_saturate(chosen)
    rewritten = Graph(network.model)
    rewrite(rewritten, calibration.ranges)
    assert list(calibration.rounding) == [conv.output[0] for conv in rewritten.of_type("Conv")]
    calibration.rounding = {}
    nearest = make_int8(network.model, network.architecture, calibration)
    changed = [(a != b).mean() for a, b in zip(conv_weights(chosen), conv_weights(nearest), strict=True)]
    assert 0.02 < np.mean(changed) < 0.5
    after, before = (np.abs(logits(model, network.other_images) - wanted).mean() for model in (chosen, nearest))
    assert after < share * before
    assert len(chosen.SerializeToString()) == len(nearest.SerializeToString())
    assert [node.op_type for node in chosen.graph.node] == [node.op_type for node in nearest.graph.node]


def test_the_same_images_give_the_same_roundings(small_mobilenet: Network) -> None:
    first, second = (with_rounding(small_mobilenet).rounding for _ in range(2))
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


def test_a_record_gives_the_same_model(small_mobilenet: Network, tmp_path: Path) -> None:
    calibration = with_rounding(small_mobilenet)
    (tmp_path / "record.json").write_bytes(encode(calibration))
    models = [
        make_int8(small_mobilenet.model, small_mobilenet.architecture, each).SerializeToString()
        for each in (calibration, load(tmp_path / "record.json"))
    ]
    assert models[0] == models[1]


def test_roundings_of_another_number_of_weights_are_refused(small_mobilenet: Network) -> None:
    calibration = with_rounding(small_mobilenet)
    calibration.rounding["stem"] = calibration.rounding["stem"][:-1]
    with pytest.raises(QuantizationError, match="the calibration has 320 roundings for 324 weights"):
        make_int8(small_mobilenet.model, small_mobilenet.architecture, calibration)


@pytest.mark.parametrize("text", ["not compressed", base64.b85encode(zlib.compress(b"1")[:-2]).decode(), "é", 7])
def test_a_record_with_a_broken_rounding_cannot_be_read(text: object, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**json.loads(encode(Calibration("", {}, None))), "rounding": {"conv": text}}))
    with pytest.raises(CalibrationError, match="cannot be read; record a new one with --calibrate DIR"):
        load(path)


def test_a_covariance_that_is_not_positive_definite_is_damped_more() -> None:
    """Sums of single precision can be off by more than the smallest variances."""
    weights = np.random.default_rng(0).uniform(-3, 3, (4, 6, 1, 1))
    covariance = np.diag([1.0, 1.0, 1.0, 1.0, 1.0, -0.02])[None]
    bits = choose_rounding(weights, covariance)
    assert bits.shape == (3,)  # 24 weights
    with pytest.raises(QuantizationError, match="vary too unevenly"):
        choose_rounding(weights, np.diag([1.0, -3.0, 1.0, 1.0, 1.0, 1.0])[None])
