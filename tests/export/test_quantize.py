"""int8 models cannot saturate, answer like fp32 and are the same bytes each time, for three architectures."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from export.architectures import ARCHITECTURES, Architecture
from export.errors import CalibrationError, QuantizationError
from export.evaluate import class_numbers, compare, label_of, logits_of, takes_pixels
from export.int8 import gate, pipeline
from export.int8.calibration import RECORDS, Calibration, Ranges, load, record_file
from export.int8.gate import require_fit
from export.int8.pipeline import calibrate, make_int8
from export.int8.pixel_input import fold_normalisation
from export.int8.quant_params import PAIR_LIMIT, QuantParams, pair_sums, quantize_weights
from export.int8.quantize import quantize
from export.onnx_graph import Array, Graph
from export.photographs import find_photographs, read_photograph
from serve.config.settings import ROOT
from serve.imaging.normalise import normalise, to_pixels
from serve.imaging.preprocess import Preprocessing
from serve.model import openvino_plugin
from serve.model.class_index import load_class_index
from tests.export.conftest import REAL, Network
from tests.references import DATA
from tests.small_densenet import SPEC, batches


def calibrated(network: Network) -> Calibration:
    names = [str(number) for number in range(len(network.calibration_images))]
    calibration = Calibration("patterns", dict.fromkeys(names, ""), None)
    calibrate(network.model, network.calibration_batches, calibration, lambda done, total: None)
    return calibration


def rewritten_graph(network: Network, calibration: Calibration) -> Graph:
    graph = Graph(network.model)
    pipeline.rewrite(graph, calibration.ranges)
    return graph


def input_of(session: ort.InferenceSession, images: Array, spec: Preprocessing = SPEC) -> dict[str, Array]:
    """The images as the model takes them."""
    return {"input": to_pixels(images, spec) if takes_pixels(session) else images}


def logits(model: onnx.ModelProto, images: Array) -> Array:
    session = ort.InferenceSession(model.SerializeToString())
    return np.concatenate([session.run(["logits"], input_of(session, image[None]))[0] for image in images])


def conv_weights(model: onnx.ModelProto) -> list[Array]:
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    return [constants[node.input[3]] for node in model.graph.node if node.op_type == "QLinearConv"]


def assert_cannot_saturate(model: onnx.ModelProto) -> None:
    """`vpmaddubsw` adds two products of a byte 0..255 and a weight in 16 bits: no two neighbours may overflow."""
    weights = conv_weights(model)
    assert weights
    for quantized in weights:
        assert quantized.dtype == np.int8
        flat = quantized.transpose(0, 2, 3, 1).reshape(quantized.shape[0], -1).astype(np.int64)
        left, right = flat[:, :-1], flat[:, 1:]
        highest = 255 * (np.maximum(left, 0) + np.maximum(right, 0))
        lowest = 255 * (np.minimum(left, 0) + np.minimum(right, 0))
        assert highest.max(initial=0) <= 32_767
        assert lowest.min(initial=0) >= -32_768


# The bounds are twice the measured mean error.
@pytest.mark.parametrize(("name", "bound"), [("small_densenet", 0.13), ("small_mobilenet", 0.03), ("resnet18", 0.02)])
def test_int8_answers_like_fp32_and_cannot_saturate(name: str, bound: float, request: pytest.FixtureRequest) -> None:
    network: Network = request.getfixturevalue(name)
    model = make_int8(network.model, network.architecture, calibrated(network))
    assert_cannot_saturate(model)
    wanted, got = logits(network.model, network.other_images), logits(model, network.other_images)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).mean() <= bound
    operators = {node.op_type for node in model.graph.node}
    assert "QLinearConv" in operators
    assert not operators & {"Conv", "Relu", "Clip", "Add"}
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert len(norms) == (name == "small_densenet")  # only there one stands before the mean; it is applied to the mean
    assert model.ir_version == network.model.ir_version
    assert model.metadata_props == network.model.metadata_props
    assert (model.producer_name, model.producer_version) == (
        network.model.producer_name,
        network.model.producer_version,
    )


def test_a_classifier_in_8_bits_is_half_the_size_and_uses_all_of_them(small_mobilenet: Network) -> None:
    network = small_mobilenet
    calibration = calibrated(network)
    models = [
        make_int8(network.model, replace(network.architecture, classifier_bits=bits), calibration) for bits in (16, 8)
    ]
    wide, narrow = (Graph(model).constants["logits.weight"] for model in models)
    assert (wide.dtype, narrow.dtype) == (np.float16, np.int8)
    assert np.abs(narrow.astype(int)).max(1).tolist() == [127] * len(narrow)
    scales = Graph(models[1]).constants["logits.weight_step"]
    np.testing.assert_allclose(narrow * scales, wide, rtol=0, atol=0.51 * scales.max())
    answers = [logits(model, network.other_images) for model in models]
    assert 0 < np.abs(answers[0] - answers[1]).mean() <= 0.03


def test_a_class_without_weights_is_quantized_too(small_mobilenet: Network) -> None:
    graph = Graph(small_mobilenet.model)
    graph.constants["matrix"] = graph.constants["matrix"] * (np.arange(10) != 4)[:, None].astype(np.float32)
    model = graph.to_model()
    int8_model = make_int8(model, replace(small_mobilenet.architecture, classifier_bits=8), calibrated(small_mobilenet))
    got = logits(int8_model, small_mobilenet.other_images)
    np.testing.assert_allclose(got[:, 4], graph.constants["offset"][4], rtol=1e-5)


def test_activations_are_stored_on_their_range_with_headroom_and_relu6s_up_to_6(small_mobilenet: Network) -> None:
    calibration = calibrated(small_mobilenet)
    graph = Graph(make_int8(small_mobilenet.model, small_mobilenet.architecture, calibration))
    stored = {}
    for node in graph.of_type("QLinearConv", "QLinearAdd"):
        scale, zero_point = node.input[6:8]
        stored[node.output[0]] = graph.constants[scale].item(), graph.constants[zero_point].item()
    assert stored.keys() == calibration.ranges.keys() - {"dilated.relu.maxpool"}  # has the parameters of its input
    for name, (scale, zero_point) in stored.items():
        low, high = (1.3 * end.item() for end in calibration.ranges[name])
        wanted = (
            QuantParams(6 / 255)
            if "clip" in name
            else QuantParams((high - low) / 255, round(-low * 255 / (high - low)))
        )
        # The scales of a sum's terms and result are a little larger, see export/int8/sums.py.
        room = 0.01 if "add" in name or "project" in name else 0.0
        assert wanted.scale * (1 - 1e-6) <= scale <= wanted.scale * (1 + 1e-6 + room), name
        assert zero_point == wanted.zero_point, name
    assert calibration.ranges["grouped"][0].item() < -1  # it needs a zero point


def values_of(model: onnx.ModelProto, tensor: str, images: Array, spec: Preprocessing) -> Array:
    """The values of a tensor on these images, as floats with the channels second."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    value = onnx.ValueInfoProto(name=tensor)
    value.type.tensor_type.elem_type = model.graph.input[0].type.tensor_type.elem_type
    watched.graph.output.append(value)
    session = ort.InferenceSession(watched.SerializeToString())
    found: Array = session.run([tensor], input_of(session, images, spec))[0].astype(np.float64)
    return found.transpose(0, 3, 1, 2) if takes_pixels(session) else found


@pytest.mark.parametrize("name", ["small_densenet", "small_mobilenet", "grey"])
def test_the_first_conv_reads_pixels_and_pads_with_the_mean_colour(name: str, request: pytest.FixtureRequest) -> None:
    """Its output is fp32's within half a step and the rounding of its weights, at the border too."""
    network: Network = request.getfixturevalue("small_mobilenet" if name == "grey" else name)
    spec = network.architecture.preprocessing
    if name == "grey":  # one mean for all channels, as in EfficientNet-Lite0, for which Pad is enough
        spec = replace(spec, mean=(127 / 255,) * 3)
    images = normalise_all(to_pixels(network.other_images[:8], SPEC), spec)
    calibration = calibrated(network)
    model = make_int8(network.model, replace(network.architecture, preprocessing=spec), calibration)
    graph = Graph(model)
    assert [(i.type.tensor_type.elem_type, i.type.tensor_type.shape.dim[3].dim_value) for i in graph.inputs] == [
        (onnx.TensorProto.UINT8, 3)
    ]
    conv = graph.of_type("QLinearConv")[0]
    assert [node.op_type for node in graph.nodes[:3]] == (
        ["Pad", "QLinearConv", "QLinearConv"] if name == "grey" else ["Pad", "Expand", "Max"]
    )
    framed = values_of(model, conv.input[0], images[:1], spec)[0]
    pixels = to_pixels(images[:1], spec)[0].transpose(2, 0, 1)
    colour = np.rint(np.array(spec.mean) * 255)[:, None, None]
    top = (framed.shape[1] - pixels.shape[1] + 1) // 2
    inner = framed[:, top : top + pixels.shape[1], top : top + pixels.shape[2]]
    assert (inner == pixels).all()
    assert framed.sum() == inner.sum() + (colour * (framed[0].size - pixels[0].size)).sum()
    assert (framed[:, 0] == colour[:, 0]).all()

    scale, zero_point = (graph.constants[name].item() for name in conv.input[6:8])
    got = (values_of(model, conv.output[0], images, spec) - zero_point) * scale
    rewritten = rewritten_graph(network, calibration)
    wanted = values_of(rewritten.to_model(), conv.output[0], images, spec).clip(
        -zero_point * scale, (255 - zero_point) * scale
    )
    weights = rewritten.constants[rewritten.of_type("Conv")[0].input[1]]
    # The frame's colour is rounded by half a pixel at most, a weight by half its step, of 127 or more to the largest.
    error = np.abs(got - wanted).max(axis=(0, 2, 3))
    assert (error <= 0.5 * scale + 0.02 * np.abs(weights).sum((1, 2, 3))).all()
    border = np.abs(got - wanted)[:, :, 0].mean()
    assert border <= 1.5 * np.abs(got - wanted).mean()


def normalise_all(pixels: Array, spec: Preprocessing) -> Array:
    return np.concatenate([normalise(each.tobytes(), spec) for each in pixels])


@pytest.mark.parametrize("change", ["relu", "depthwise", "two readers"])
def test_an_input_that_no_conv_alone_reads_is_refused(small_mobilenet: Network, change: str) -> None:
    graph = Graph(small_mobilenet.model)
    conv = graph.of_type("Conv")[0]
    if change == "depthwise":
        conv.attribute.append(helper.make_attribute("group", 3))
    else:
        graph.nodes.insert(0, helper.make_node("Relu", ["input"], ["positive"]))
        conv.input[0] = "positive" if change == "relu" else "input"
    with pytest.raises(QuantizationError, match="the input is not read by one Conv of all channels"):
        fold_normalisation(graph, Calibration("", {}, None), SPEC)


def test_taking_pixels_changes_no_answer(small_densenet: Network) -> None:
    graph = Graph(small_densenet.model)
    fold_normalisation(graph, Calibration("", {}, None), SPEC)
    taking = graph.to_model()
    images = small_densenet.other_images
    difference = np.abs(logits(taking, images) - logits(small_densenet.model, images)).max()
    assert difference <= gate.MAX_REWRITE_DIFFERENCE
    graph.constants["input.frame"] = 0 * graph.constants["input.frame"]  # a darker frame does
    assert np.abs(logits(graph.to_model(), images) - logits(small_densenet.model, images)).max() > 1e-2


def test_bias_correction_lowers_the_error(small_densenet: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = calibrated(small_densenet)
    wanted = logits(small_densenet.model, small_densenet.other_images)

    def error() -> float:
        model = make_int8(small_densenet.model, small_densenet.architecture, calibration)
        return float(np.abs(logits(model, small_densenet.other_images) - wanted).mean())

    corrected = error()
    calibration.means, calibration.active = {}, {}
    assert corrected < 0.1 * error()


def test_bounds_are_the_quantized_values_nearest_to_the_thresholds(small_densenet: Network) -> None:
    calibration = calibrated(small_densenet)
    rewritten = rewritten_graph(small_densenet, calibration)
    quantized = Graph(make_int8(small_densenet.model, small_densenet.architecture, calibration))
    clips = [node for node in quantized.of_type("Max", "Min") if node.output[0] != "input.framed"]
    assert len(clips) > 8
    for clip in clips:
        before = next(node for node in rewritten.of_type("Max", "Min") if node.output[0] == clip.output[0])
        threshold = np.clip(rewritten.value(before.input[1]).reshape(-1), 0, 1)
        expand = quantized.producer(clip.input[1])
        assert expand is not None
        assert np.abs(quantized.value(expand.input[0]) / 255 - threshold).max() <= 0.5 / 255 + 1e-6


def features(model: onnx.ModelProto, images: Array) -> Array:
    """The classifier's input, its mean over these images."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    watched.graph.output.append(helper.make_tensor_value_info(gemm.input[0], onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(watched.SerializeToString())
    seen: Array = np.concatenate([session.run([gemm.input[0]], {"input": image[None]})[0] for image in images])
    return seen.mean(0)


def test_the_classifiers_input_is_corrected_too(small_densenet: Network) -> None:
    """What rounding the last thresholds adds to the mean of each channel is subtracted again."""
    calibration = calibrated(small_densenet)
    quantized = Graph(make_int8(small_densenet.model, small_densenet.architecture, calibration))
    rewritten = rewritten_graph(small_densenet, calibration)
    correction = quantized.value("logits.features.shift") - rewritten.value("logits.features.shift")
    assert np.abs(correction).max() > 1e-3
    exact = features(rewritten.to_model(), small_densenet.calibration_images)
    last = rewritten.of_type("Min")[-1].output[0]
    for name in (f"{last}.low", f"{last}.high"):
        values = rewritten.constants[name]
        within = (values >= 0) & (values <= 1)
        rewritten.constants[name] = np.where(within, np.rint(values * 255) / np.float32(255), values)
    rounded = features(rewritten.to_model(), small_densenet.calibration_images)
    allowed = 5e-5 * np.abs(rewritten.value("logits.features.scale")) + 1e-6
    assert (np.abs(rounded + correction - exact) <= allowed).all()


def test_int8_answers_the_same_alone_and_in_a_batch(small_densenet: Network) -> None:
    model = make_int8(small_densenet.model, small_densenet.architecture, calibrated(small_densenet))
    session = ort.InferenceSession(model.SerializeToString())
    together = session.run(["logits"], input_of(session, small_densenet.other_images))[0]
    np.testing.assert_allclose(together, logits(model, small_densenet.other_images), rtol=0, atol=1e-4)


def test_the_models_that_are_served_cannot_saturate(exported: Path) -> None:
    for path in (ROOT / "models" / "efficientnet_lite0.onnx", *exported.parent.glob("*.int8.onnx")):
        model = onnx.load(path)
        assert_cannot_saturate(model)
        first = next(node for node in model.graph.node if node.op_type == "QLinearConv")
        assert first.input[0].startswith("input.")  # the pixels, padded
        assert {value.name: value.type.tensor_type.elem_type for value in model.graph.input} == {
            "input": onnx.TensorProto.UINT8
        }


def test_full_range_weights_would_saturate(small_densenet: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail: it does on weights scaled to the full range, as quantizers usually do."""
    monkeypatch.setattr("export.int8.quant_params.pair_sums", lambda weights: np.zeros(len(weights)))
    model = make_int8(small_densenet.model, small_densenet.architecture, calibrated(small_densenet))
    with pytest.raises(AssertionError):
        assert_cannot_saturate(model)


def one_conv(weights: Array, bias: Array) -> onnx.ModelProto:
    """Conv → mean → classifier of two classes."""
    constants = {
        "weights": weights.astype(np.float32),
        "bias": bias.astype(np.float32),
        "matrix": np.eye(2, len(bias), dtype=np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "weights", "bias"], ["conv"]),
        helper.make_node("GlobalAveragePool", ["conv"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 3, 64, 64])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def quantized_on_pixels(graph: Graph, calibration: Calibration) -> Graph:
    calibration = fold_normalisation(graph, calibration, SPEC)
    return Graph(quantize(graph, calibration))


UNIT: dict[str, tuple[Array, Array]] = {"conv": (np.array([0.0]), np.array([1.0]))}


def test_quantized_biases_are_the_nearest_and_leave_half_of_32_bits_for_the_sum() -> None:
    bias = np.array([3.21, -1.5, 0.777])
    weights = np.array([[0.5, -0.2, 0.1], [1e-9, 0, 0], [0, 0, 0]])[:, :, None, None]
    graph = quantized_on_pixels(Graph(one_conv(weights, bias)), Calibration("", {}, None, UNIT))
    quantized, scales = graph.constants["conv.bias_codes"].astype(np.float64), graph.constants["conv.weight_step"]
    input_scale = 1 / 255
    bias -= weights[:, :, 0, 0] @ (np.array(SPEC.mean) / SPEC.std)
    assert graph.constants["logits.weight"].dtype == np.float16  # 16 bits are the default
    np.testing.assert_allclose(quantized * input_scale * scales, bias, rtol=0, atol=0.5001 * input_scale * scales.max())
    assert abs(quantized[0] - bias[0] / (input_scale * float(scales[0]))) <= 0.51
    assert np.abs(quantized[1:]) == pytest.approx(
        2**30, rel=1e-6
    )  # weights so small would get smaller scales by themselves


def test_biases_are_corrected_by_the_inputs_mean_times_the_rounding_error(small_mobilenet: Network) -> None:
    weights = np.array([[0.5, -0.203, 0.101], [0.3, 0.3, -0.1]])[:, :, None, None]
    means = {"input": np.array([0.3, -0.7, 1.1])}
    plain, corrected = (
        quantized_on_pixels(Graph(one_conv(weights, np.zeros(2))), Calibration("", {}, None, UNIT, known))
        for known in ({}, means)
    )
    weights, mean = weights / np.array(SPEC.std)[:, None, None], means["input"] * SPEC.std + SPEC.mean
    scales = plain.constants["conv.weight_step"].astype(np.float64)
    lost = weights[:, :, 0, 0] - plain.constants["conv.weight"][:, :, 0, 0] * scales[:, None]
    added = (corrected.constants["conv.bias_codes"] - plain.constants["conv.bias_codes"]) * scales / 255
    np.testing.assert_allclose(added, lost @ mean, rtol=0, atol=0.51 * scales.max() / 255)
    assert np.abs(lost @ mean).min() > scales.max() / 255


def test_a_channels_expected_input_is_corrected_for_its_rounded_threshold() -> None:
    """By the share of values that lie on it; one outside of [0, 1] counts only if most values do."""
    cases = [  # lower bound, upper bound, share between them, what rounding the bound adds to the mean
        (0.501, np.inf, 0.4, (128 / 255 - 0.501) * 0.6),
        (-np.inf, 0.303, 0.25, (77 / 255 - 0.303) * 0.75),
        (-0.3, np.inf, 0.9, 0),
        (-0.3, np.inf, 0.5, 0),
        (-0.3, np.inf, 0.3, 0.3 * 0.7),
        (-np.inf, 1.2, 0.9, 0),
        (-np.inf, 1.2, 0.2, -0.2 * 0.8),
        (-np.inf, np.inf, 1.0, 0),  # a dead channel
    ]
    low, high, active, added = (np.array(column) for column in zip(*cases, strict=True))
    channels = len(cases)
    graph = Graph(one_conv(np.ones((channels, 3, 1, 1)), np.zeros(channels)))
    graph.constants |= {
        "clip.low": low.astype(np.float32).reshape(1, -1, 1, 1),
        "clip.high": high.astype(np.float32).reshape(1, -1, 1, 1),
        "second.weights": np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1),
    }
    graph.nodes[1:1] = [
        helper.make_node("Max", ["conv", "clip.low"], ["above"]),
        helper.make_node("Min", ["above", "clip.high"], ["clip"]),
        helper.make_node("Conv", ["clip", "second.weights"], ["second"]),
    ]
    graph.nodes[4].input[0] = "second"
    known = Calibration("", {}, None, {"second": UNIT["conv"]}, {"clip": np.full(channels, 0.5)}, {"clip": active})
    quantized = quantized_on_pixels(graph, known)
    bias = quantized.constants["second.bias_codes"] * quantized.constants["second.weight_step"] / 255
    np.testing.assert_allclose(bias, -added, rtol=0, atol=2e-5)


def test_a_calibration_of_other_channels_is_refused() -> None:
    calibration = Calibration("", {}, None, UNIT, {"input": np.zeros(4)})
    with pytest.raises(QuantizationError, match="the calibration has 4 channels for 'input', the graph has 3"):
        fold_normalisation(Graph(one_conv(np.ones((2, 3, 1, 1)), np.zeros(2))), calibration, SPEC)


def relu_after_pooling(nodes: list[onnx.NodeProto]) -> None:
    nodes.insert(1, helper.make_node("Relu", ["pooled"], ["positive"]))


def relu_then_clip(nodes: list[onnx.NodeProto]) -> None:
    nodes[1].input[0] = "clipped"
    nodes[1:1] = [helper.make_node("Relu", ["conv"], ["relu"]), helper.make_node("Clip", ["relu"], ["clipped"])]


def concat_of_two_scales(nodes: list[onnx.NodeProto]) -> None:
    nodes.insert(1, helper.make_node("Concat", ["mean", "conv"], ["both"], axis=1))


def flat_image(nodes: list[onnx.NodeProto]) -> None:
    nodes[2].input[0] = "conv"


def norm_of_an_image(nodes: list[onnx.NodeProto]) -> None:
    nodes.insert(1, helper.make_node("BatchNormalization", ["conv", *["offset"] * 4], ["norm"]))


def untransposed_gemm(nodes: list[onnx.NodeProto]) -> None:
    nodes[3].attribute[0].i = 0


def default_gemm(nodes: list[onnx.NodeProto]) -> None:
    del nodes[3].attribute[:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (relu_after_pooling, "Relu 'positive' cannot be fused into the node before it"),
        (relu_then_clip, "Clip 'clipped' cannot be fused into the node before it"),
        (concat_of_two_scales, "the inputs of Concat 'both' do not have a common scale"),
        (flat_image, "Flatten 'flat' flattens an image, not its mean"),
        (norm_of_an_image, "BatchNormalization 'norm' cannot be quantized: it is not applied to a mean"),
        (untransposed_gemm, "Gemm 'logits' cannot be quantized: its weights are not transposed"),
        (default_gemm, "Gemm 'logits' cannot be quantized: its weights are not transposed"),
    ],
)
def test_nodes_without_an_integer_form_are_refused_by_name(
    change: Callable[[list[onnx.NodeProto]], None], words: str
) -> None:
    calibration = Calibration("", {}, None, {**UNIT, "relu": UNIT["conv"]})
    graph = Graph(one_conv(np.ones((2, 3, 1, 1)), np.zeros(2)))
    change(graph.nodes)
    with pytest.raises(QuantizationError, match=words):
        quantize(graph, fold_normalisation(graph, calibration, SPEC))


@pytest.mark.parametrize(("sign", "left_out"), [(1, "Min"), (-1, "Max")])
def test_a_clip_that_changes_nothing_is_left_out(sign: int, left_out: str, small_densenet: Network) -> None:
    """With scales of one sign only one of the two comparisons is needed."""
    graph = Graph(small_densenet.model)
    for norm in graph.of_type("BatchNormalization"):
        graph.constants[norm.input[1]] = sign * np.maximum(np.abs(graph.constants[norm.input[1]]), 0.1)
    network = replace(small_densenet, model=graph.to_model())
    int8_model = make_int8(network.model, network.architecture, calibrated(network))
    operators = {node.op_type for node in int8_model.graph.node if node.output[0] != "input.framed"}
    assert len(operators & {"Min", "Max"}) == 1
    assert left_out not in operators


def test_progress_covers_both_passes(small_mobilenet: Network) -> None:
    told: list[tuple[int, int]] = []
    calibration = Calibration("", {"a": "", "b": "", "c": ""}, None)
    images = small_mobilenet.calibration_images[:3]
    calibrate(small_mobilenet.model, lambda: batches(images), calibration, lambda *now: told.append(now))
    assert told == [(done, 6) for done in (1, 2, 3, 4, 5, 6)]


def test_statistics_are_rounded_to_three_digits(small_mobilenet: Network) -> None:
    calibration = calibrated(small_mobilenet)
    kept = [*calibration.means.values(), *(end for ends in calibration.ranges.values() for end in ends)]
    assert all(float(f"{value:.3g}") == value for values in kept for value in values)
    assert any(float(f"{value:.2g}") != value for values in kept for value in values)


def test_weight_scales_use_as_much_of_8_bits_as_neighbours_allow() -> None:
    lone = np.array([1.0, 0.0, -0.6, 0.0]).reshape(1, 4, 1, 1)
    quantized, scales = quantize_weights(lone)
    assert quantized.reshape(-1).tolist() == [127, 0, -76, 0]
    np.testing.assert_allclose(quantized.reshape(-1) * scales, lone.reshape(-1), atol=scales[0] / 2)
    twins = np.array([1.0, 1.0, -1.0, 1.0]).reshape(1, 4, 1, 1)
    assert np.abs(quantize_weights(twins)[0]).max() == 63  # 64 if they are rounded up
    assert pair_sums(twins).tolist() == [2.0]
    assert pair_sums(np.array([[1.0, -0.5], [-0.5, 1.0]])[:, :, None, None]).tolist() == [1.0, 1.0]
    assert pair_sums(np.ones((1, 1, 1, 1))).tolist() == [0.0]  # it has no neighbour
    np.testing.assert_array_equal(quantize_weights(lone, 0.5)[0].reshape(-1), [2, 0, -1, 0])
    opposite = np.array([1.0, -1.0]).reshape(1, 2, 1, 1)
    assert np.abs(quantize_weights(opposite)[0]).max() == 127


def test_no_weights_can_be_made_to_saturate() -> None:
    random = np.random.default_rng(0)
    for shape in ((64, 37, 3, 3), (64, 3, 7, 7), (64, 128, 1, 1), (64, 1, 3, 3), (64, 1, 1, 1)):
        for weights in (random.standard_normal(shape), random.choice([-1.0, 1.0, 0.5], shape), np.zeros(shape)):
            quantized, _ = quantize_weights(weights)
            assert pair_sums(quantized.astype(np.float64)).max() <= PAIR_LIMIT
    assert 255 * PAIR_LIMIT <= 32_767 < 255 * (PAIR_LIMIT + 1)
    # Two weights that are both rounded up reach the limit, and no weights can pass it.
    up = np.packbits([1, 1])
    quantized, _ = quantize_weights(np.array([0.5, 0.5]).reshape(1, 2, 1, 1), 0.0, lambda scaled: up)
    assert pair_sums(quantized.astype(np.float64)).tolist() == [PAIR_LIMIT]


def test_zero_is_represented_exactly() -> None:
    for low, high in ((-1.0, 3.0), (0.0, 6.0), (2.0, 5.0), (-3.0, -1.0), (0.0, 0.0)):
        params = QuantParams.from_range(low, high)
        assert 0 <= params.zero_point <= 255
        assert (255 - params.zero_point) * params.scale >= high - params.scale
        assert -params.zero_point * params.scale <= low + params.scale
    assert QuantParams.from_range(-1.0, 3.0) == QuantParams(4 / 255, 64)
    assert QuantParams.from_range(2.0, 5.0) == QuantParams(5 / 255, 0)
    assert QuantParams.from_range(-3.0, -1.0) == QuantParams(cast(float, pytest.approx(3 / 255)), 255)
    assert QuantParams.from_range(0.0, 0.0) == QuantParams(1e-6 / 255, 0)
    assert QuantParams.from_range(0.0, 0.3) == QuantParams(0.3 / 255, 0)


def test_the_same_calibration_gives_the_same_bytes(small_densenet: Network) -> None:
    models = [
        make_int8(small_densenet.model, small_densenet.architecture, calibrated(small_densenet)).SerializeToString()
        for _ in range(2)
    ]
    assert models[0] == models[1]


def test_a_rewrite_that_changes_an_answer_is_refused_with_its_figure(
    small_densenet: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration, images = calibrated(small_densenet), list(small_densenet.calibration_batches())
    make_int8(small_densenet.model, small_densenet.architecture, calibration, images)
    rewrite = pipeline.rewrite

    def broken(graph: Graph, ranges: Ranges) -> None:
        rewrite(graph, ranges)
        gemm = graph.of_type("Gemm")[0]
        graph.constants[gemm.input[2]] = graph.constants[gemm.input[2]] + np.float32(0.01)

    monkeypatch.setattr(pipeline, "rewrite", broken)
    with pytest.raises(QuantizationError, match=r"max .Δ logit. is 0\.01, more than 0\.001"):
        make_int8(small_densenet.model, small_densenet.architecture, calibration, images)


def test_an_operator_without_an_integer_form_is_named(small_densenet: Network) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small_densenet.model)
    model.graph.node.insert(0, helper.make_node("Sigmoid", ["other"], ["squashed"]))
    with pytest.raises(QuantizationError, match="Sigmoid 'squashed' cannot be quantized"):
        quantize(Graph(model), calibrated(small_densenet))


def test_a_calibration_with_a_gap_names_the_tensor(small_densenet: Network) -> None:
    calibration = calibrated(small_densenet)
    with pytest.raises(QuantizationError, match=r"the calibration has no range for '[a-z0-9_.]+'"):
        quantized_on_pixels(rewritten_graph(small_densenet, calibration), Calibration("", {}, None))
    del calibration.ranges[next(iter(calibration.ranges))]
    with pytest.raises(CalibrationError, match="for another graph"):
        require_fit(small_densenet.model, small_densenet.calibration_batches(), calibration)


def test_the_recorded_calibration_fits_its_weights_and_no_others(exported: Path, densenet121: Architecture) -> None:
    calibration = load(record_file("densenet121"))
    images = [read_photograph(path, densenet121.preprocessing) for path in find_photographs([DATA / "photos"])]
    model = onnx.load(exported)
    card = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    its_own = card["weights"]["sha256"] == calibration.weights_sha256
    assert exported.with_suffix(".int8.onnx").exists() == its_own
    if its_own:
        require_fit(model, images, calibration)
    else:
        with pytest.raises(CalibrationError, match="recorded range"):
            require_fit(model, images, calibration)


def embedded_card() -> dict[str, Any]:
    entries = onnx.load(ROOT / "models" / "efficientnet_lite0.onnx").metadata_props
    return {entry.key: json.loads(entry.value) for entry in entries}


def test_the_embedded_models_own_figures_are_within_the_gate() -> None:
    figures = embedded_card()["accuracy"]
    assert figures["photographs"] >= gate.MIN_PHOTOGRAPHS
    assert figures["agreement"] >= gate.MIN_AGREEMENT
    assert figures["fp32_top1"] - figures["top1"] <= gate.MAX_TOP1_LOSS
    assert embedded_card()["weights"]["sha256"] == load(record_file("efficientnet_lite0")).weights_sha256


def answers_of(model: Path, photographs: list[Path], architecture: Architecture) -> Array:
    return logits_of(
        model.read_bytes(),
        (read_photograph(path, architecture.preprocessing) for path in photographs),
        architecture.preprocessing,
        lambda done, total: None,
        len(photographs),
    )


def test_the_embedded_model_knows_the_projects_own_images() -> None:
    names = load_class_index(ROOT / "imagenet_class_index.json", 1000)
    paths = find_photographs([DATA / "photos"])
    answers = answers_of(ROOT / "models" / "efficientnet_lite0.onnx", paths, ARCHITECTURES["efficientnet_lite0"])
    said = {path.stem: names[row.argmax()].name for path, row in zip(paths, answers, strict=True)}
    assert said == {"cat": "Egyptian_cat", "coffee": "espresso", "rocket": "missile"}


if REAL:

    def held_out(photo_folder: Path) -> tuple[list[Path], list[int | None]]:
        paths = load(record_file("densenet121")).held_out(find_photographs([photo_folder]))
        assert len(paths) >= gate.MIN_PHOTOGRAPHS
        numbers = class_numbers()
        return paths, [label_of(path, numbers) for path in paths]

    def test_int8_is_as_accurate_as_its_gate_says(
        exported: Path, photo_folder: Path, densenet121: Architecture
    ) -> None:
        paths, labels = held_out(photo_folder)
        fp32 = answers_of(exported, paths, densenet121)
        for suffix in (".int8.onnx", *([".qdq.onnx"] if not openvino_plugin.obstacle() else [])):
            figures = compare(answers_of(exported.with_suffix(suffix), paths, densenet121), fp32, labels)
            print(f"\n{suffix} {figures}")
            assert figures.agreement >= 0.97
            assert figures.top1_loss is not None
            assert figures.top1_loss <= 0.005

    def test_the_embedded_model_is_as_accurate_as_its_card_says(photo_folder: Path) -> None:
        paths, labels = held_out(photo_folder)
        answers = answers_of(ROOT / "models" / "efficientnet_lite0.onnx", paths, ARCHITECTURES["efficientnet_lite0"])
        assert compare(answers, answers, labels).top1 == pytest.approx(embedded_card()["accuracy"]["top1"], abs=0.01)


def test_every_record_of_the_project_is_one_of_its_architectures() -> None:
    assert {path.stem for path in RECORDS.glob("*.json")} <= set(ARCHITECTURES)
