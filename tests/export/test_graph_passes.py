"""Each graph pass keeps the network's answers and does what it is for, on a small DenseNet and on the real one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export.errors import QuantizationError
from export.int8.calibration import Ranges, observe_ranges
from export.int8.graph_passes import HEADROOM, chain_concats, clip_batchnorms, equalize_channels, merge_average_pools
from export.int8.pipeline import rewrite
from export.onnx_graph import Array, Graph, concat_inputs
from tests.export.conftest import Network

UNCHANGED = 1e-3


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    result: np.ndarray = ort.InferenceSession(model.SerializeToString()).run(["logits"], {"input": images})[0]
    return result


def ranges_of(network: Network) -> Ranges:
    return ranges_in(network.model, network)


def ranges_in(model: onnx.ModelProto, network: Network) -> Ranges:
    """The ranges of another model on a network's images."""
    return observe_ranges(Graph(model), network.calibration_batches(), lambda done: None)


Pass = Callable[[Graph], object]


def passes(network: Network) -> list[Pass]:
    ranges = ranges_of(network)
    return [lambda graph: equalize_channels(graph, ranges), clip_batchnorms, merge_average_pools, chain_concats]


def run_pass(apply: Pass, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model that a pass leaves; the one given stays as it is."""
    graph = Graph(model)
    apply(graph)
    return graph.to_model()


def assert_not_equalized(model: onnx.ModelProto, ranges: Ranges) -> None:
    graph = Graph(model)
    before = graph.to_model()
    assert not equalize_channels(graph, ranges)
    assert graph.to_model() == before


def test_no_pass_changes_an_answer(any_network: Network) -> None:
    before = any_network.model.SerializeToString()
    graph = Graph(any_network.model)
    images = any_network.other_images
    wanted = logits(any_network.model, images)
    for apply in passes(any_network):
        apply(graph)
        rewritten = graph.to_model()
        onnx.checker.check_model(rewritten, full_check=True)
        assert np.abs(logits(rewritten, images) - wanted).max() <= UNCHANGED
    assert any_network.model.SerializeToString() == before  # a graph is a copy


def test_equalized_channels_lie_between_0_and_1(small_densenet: Network) -> None:
    graph = Graph(small_densenet.model)
    assert equalize_channels(graph, ranges_of(small_densenet))
    pieces = {piece for norm in graph.of_type("BatchNormalization") for piece in concat_inputs(graph, norm.input[0])}
    seen = observe_ranges(graph, small_densenet.calibration_batches(), lambda done: None)
    assert pieces <= set(seen)
    used = np.concatenate([np.clip(seen[piece][1], 0, 1) - np.clip(seen[piece][0], 0, 1) for piece in pieces])
    assert np.quantile(used, 0.3) == pytest.approx(1 / HEADROOM, abs=1e-4)  # all of it except for the headroom
    # No ReLU passes on a difference between values outside of it.
    for piece in pieces:
        producer = graph.producer(piece)
        assert producer is not None
        producer.output[0] = f"{piece}.any"
        graph.constants |= {"zero": np.array(0, np.float32), "one": np.array(1, np.float32)}
        clip = onnx.helper.make_node("Clip", [f"{piece}.any", "zero", "one"], [piece])
        graph.nodes.insert(graph.nodes.index(producer) + 1, clip)
    images = small_densenet.calibration_images
    np.testing.assert_allclose(
        logits(graph.to_model(), images), logits(small_densenet.model, images), rtol=0, atol=UNCHANGED
    )


def test_no_batchnorm_or_relu_after_one_is_left_before_the_mean(small_densenet: Network) -> None:
    graph = Graph(small_densenet.model)
    clip_batchnorms(graph)
    (norm,) = graph.of_type("BatchNormalization")
    averaged = graph.producer(norm.input[0])
    assert averaged is not None
    assert averaged.op_type == "Reshape"
    assert graph.only_consumer(norm.output[0], "Gemm")
    assert (
        len(graph.of_type("Max"))
        == len(graph.of_type("Min"))
        == len(Graph(small_densenet.model).of_type("BatchNormalization"))
    )


def test_clipping_holds_for_negative_and_zero_scales(small_densenet: Network) -> None:
    graph = Graph(small_densenet.model)
    for norm in graph.of_type("BatchNormalization"):
        scale = graph.constants[norm.input[1]].copy()
        scale[::3] *= -1
        scale[1::5] = 0
        graph.constants[norm.input[1]] = scale
    changed = graph.to_model()
    images = small_densenet.other_images
    np.testing.assert_allclose(
        logits(run_pass(clip_batchnorms, changed), images), logits(changed, images), rtol=0, atol=UNCHANGED
    )


def test_average_pools_become_strided_convs(small_densenet: Network) -> None:
    assert Graph(small_densenet.model).of_type("AveragePool")
    assert not Graph(run_pass(merge_average_pools, small_densenet.model)).of_type("AveragePool")


def test_concats_have_two_pieces_at_most(small_densenet: Network) -> None:
    assert max(len(node.input) for node in Graph(small_densenet.model).of_type("Concat")) > 2
    assert max(len(node.input) for node in Graph(run_pass(chain_concats, small_densenet.model)).of_type("Concat")) == 2


def test_another_architecture_passes_unchanged(resnet18: Network) -> None:
    graph = Graph(resnet18.model)
    for apply in passes(resnet18):
        apply(graph)
    assert [node.op_type for node in graph.nodes] == [node.op_type for node in resnet18.model.graph.node]


@pytest.mark.parametrize("reader", ["Relu", "Conv"])
def test_a_concat_that_something_else_reads_is_left_alone(reader: str, small_densenet: Network) -> None:
    """Its channels must not be scaled, because only BatchNorms scale them back."""
    graph = Graph(small_densenet.model)
    concat = graph.of_type("Concat")[0]
    norm = next(node for node in graph.consumers(concat.output[0]) if node.op_type == "BatchNormalization")
    inputs = [concat.input[0]] if reader == "Relu" else [concat.input[0], _weight_reading(graph, concat.input[0])]
    graph.nodes.insert(graph.nodes.index(norm), onnx.helper.make_node(reader, inputs, ["aside"]))
    model = graph.to_model()
    assert_not_equalized(model, ranges_of(small_densenet))
    with pytest.raises(QuantizationError, match="cannot have a common scale"):
        rewrite(graph, ranges_of(small_densenet))


def _weight_reading(graph: Graph, tensor: str) -> str:
    channels = graph.constants[graph.of_type("Conv")[0].input[1]].shape[0]
    graph.constants["aside.weight"] = np.ones((1, channels, 1, 1), np.float32)
    return "aside.weight"


def give(node: onnx.NodeProto, **attributes: object) -> None:
    """Set attributes of a node, replacing those it has."""
    others = [entry for entry in node.attribute if entry.name not in attributes]
    del node.attribute[:]
    node.attribute.extend([*others, *(onnx.helper.make_attribute(name, value) for name, value in attributes.items())])


def with_norm_on_the_input(network: Network, *after: str) -> Graph:
    """The network with a BatchNormalization, and maybe a ReLU, before its first Conv."""
    graph = Graph(network.model)
    graph.constants |= {
        "first.scale": np.array([0.9, -1.1, 1.2], np.float32),
        "first.shift": np.array([0.1, 0.2, -0.1], np.float32),
        "first.mean": np.zeros(3, np.float32),
        "first.variance": np.array([1.0, 1.5, 0.7], np.float32),
    }
    statistics = [f"first.{name}" for name in ("scale", "shift", "mean", "variance")]
    nodes = [onnx.helper.make_node("BatchNormalization", ["input", *statistics], ["first"], epsilon=0.3)]
    if after:
        nodes.append(onnx.helper.make_node("Relu", ["first"], ["first.relu"]))
    graph.nodes[0].input[0] = nodes[-1].output[0]
    graph.nodes[:0] = nodes
    return graph


@pytest.mark.parametrize("after", [(), ("Relu",)])
def test_a_batchnorm_that_no_pointwise_conv_follows_is_left_alone_and_the_others_are_not(
    after: tuple[str, ...], small_densenet: Network
) -> None:
    model = with_norm_on_the_input(small_densenet, *after).to_model()
    clipped = run_pass(clip_batchnorms, model)
    assert [norm.output[0] for norm in Graph(clipped).of_type("BatchNormalization")] == ["first", "logits.features"]
    assert_not_equalized(model, ranges_of(small_densenet))  # because no Conv makes what the first BatchNorm reads
    images = small_densenet.other_images
    np.testing.assert_allclose(logits(clipped, images), logits(model, images), rtol=0, atol=UNCHANGED)


@pytest.mark.parametrize("epsilon", [0.25, None])
def test_epsilon_is_each_batchnorms_own_or_the_standards(epsilon: float | None, small_densenet: Network) -> None:
    graph = Graph(small_densenet.model)
    for norm in graph.of_type("BatchNormalization"):
        del norm.attribute[:]
        if epsilon is not None:
            give(norm, epsilon=epsilon)
    model, images = graph.to_model(), small_densenet.other_images
    ranges = ranges_in(model, small_densenet)
    wanted = logits(model, images)
    assert (np.abs(wanted - logits(small_densenet.model, images)).max() > 0.1) == (epsilon is not None)
    applied: tuple[Pass, ...] = (
        lambda graph: equalize_channels(graph, ranges),
        clip_batchnorms,
        lambda graph: rewrite(graph, ranges),
    )
    for apply in applied:
        np.testing.assert_allclose(logits(run_pass(apply, model), images), wanted, rtol=0, atol=UNCHANGED)


def test_a_channel_that_never_moves_is_left_at_an_ordinary_scale(small_densenet: Network) -> None:
    graph = Graph(small_densenet.model)
    conv = graph.of_type("Conv")[2]
    assert graph.only_consumer(conv.output[0], "Concat") is None  # several nodes read it
    weights = graph.constants[conv.input[1]].copy()
    weights[3] = 0
    graph.constants[conv.input[1]] = weights
    model, images = graph.to_model(), small_densenet.other_images
    ranges = ranges_in(model, small_densenet)
    equalized = run_pass(lambda graph: equalize_channels(graph, ranges), model)
    np.testing.assert_allclose(logits(equalized, images), logits(model, images), rtol=0, atol=UNCHANGED)
    made = Graph(equalized)
    bias = made.constants[next(node for node in made.of_type("Conv") if node.output[0] == conv.output[0]).input[2]]
    assert np.abs(bias[3]) <= np.abs(bias).max() <= 10


def test_only_the_ranges_that_are_needed_are_asked_for(small_densenet: Network) -> None:
    ranges = ranges_of(small_densenet)
    graph = Graph(small_densenet.model)
    needed = {piece for norm in graph.of_type("BatchNormalization") for piece in concat_inputs(graph, norm.input[0])}
    assert needed < set(ranges)
    exact = {name: ranges[name] for name in needed}
    assert equalize_channels(Graph(small_densenet.model), exact)
    del exact[next(iter(exact))]
    assert_not_equalized(small_densenet.model, exact)


def test_the_nodes_that_a_merged_conv_replaces_are_removed(small_densenet: Network) -> None:
    merged = run_pass(merge_average_pools, small_densenet.model)
    read = {name for node in merged.graph.node for name in node.input}
    assert all(node.output[0] in read or node.output[0] == "logits" for node in merged.graph.node)
    assert len(merged.graph.node) == len(small_densenet.model.graph.node) - 1
    conv = next(node for node in Graph(merged).of_type("Conv") if node.output[0] == "avg_pool2d")
    attributes = {entry.name: list(entry.ints) for entry in conv.attribute}
    assert attributes == {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0]}


def overlapping(graph: Graph, pool: onnx.NodeProto) -> None:
    give(pool, strides=[1, 1])


def padded(graph: Graph, pool: onnx.NodeProto) -> None:
    give(pool, pads=[0, 0, 0, 1])


def of_the_input(graph: Graph, pool: onnx.NodeProto) -> None:
    pool.input[0] = "input"


def of_a_wide_conv(graph: Graph, pool: onnx.NodeProto) -> None:
    conv = graph.producer(pool.input[0])
    assert conv is not None
    weights = graph.constants[conv.input[1]]
    graph.constants[conv.input[1]] = np.tile(weights, (1, 1, 3, 3)) / np.float32(9)
    del conv.attribute[:]
    give(conv, pads=[1, 1, 1, 1])


def read_twice(graph: Graph, pool: onnx.NodeProto) -> None:
    graph.nodes.append(onnx.helper.make_node("Sigmoid", [pool.input[0]], ["aside"]))


@pytest.mark.parametrize("change", [overlapping, padded, of_the_input, of_a_wide_conv, read_twice])
def test_an_average_pool_that_is_no_part_of_a_conv_stays(
    change: Callable[[Graph, onnx.NodeProto], None], small_densenet: Network
) -> None:
    """Another one, which can be merged, is merged."""
    graph = Graph(small_densenet.model)
    change(graph, graph.of_type("AveragePool")[0])
    # A second one at the end, which can be merged: after a Conv on the input.
    graph.constants["late.weight"] = np.ones((2, 3, 1, 1), np.float32)
    late = onnx.helper.make_node("Conv", ["input", "late.weight"], ["late"])
    pool = onnx.helper.make_node("AveragePool", ["late"], ["late.pool"], kernel_shape=[2, 2], strides=[2, 2])
    graph.nodes += [late, pool]
    merged = Graph(run_pass(merge_average_pools, graph.to_model()))
    assert [node.output[0] for node in merged.of_type("AveragePool")] == ["avg_pool2d"]
    assert [node.input[0] for node in merged.nodes if node.output[0] == "late.pool"] == ["input"]


def conv_and_norms(*affines: tuple[Array, Array]) -> onnx.ModelProto:
    """A Conv that copies one value to each channel, and BatchNorms with these scales and shifts that read it."""
    channels = len(affines[0][0])
    constants = {"weight": np.ones((channels, 1, 1, 1), np.float32), "mean": np.zeros(channels, np.float32)}
    constants["variance"] = np.ones(channels, np.float32)
    nodes = [onnx.helper.make_node("Conv", ["input", "weight"], ["conv"])]
    for number, (scale, shift) in enumerate(affines):
        constants |= {f"scale{number}": scale.astype(np.float32), f"shift{number}": shift.astype(np.float32)}
        inputs = ["conv", f"scale{number}", f"shift{number}", "mean", "variance"]
        nodes.append(onnx.helper.make_node("BatchNormalization", inputs, [f"norm{number}"], epsilon=0.0))
    graph = onnx.helper.make_graph(
        nodes, "norms", [], [], [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])


def kept(ranges: Array, *affines: Array) -> Array:
    """The part of each channel's range `[C, 2]` that equalization keeps; affines: scales and shifts, `[C, 2]` each."""
    model = conv_and_norms(*((affine[:, 0], affine[:, 1]) for affine in affines))
    graph = Graph(model)
    assert equalize_channels(graph, {"conv": (ranges[:, 0], ranges[:, 1])})
    width = 1 / graph.constants["conv.weight"].reshape(-1)
    low = -graph.constants["conv.bias"] * width
    return np.stack([low, low + width / HEADROOM], axis=1)


def test_of_a_channel_the_part_that_some_relu_lets_through_is_kept() -> None:
    cases = {
        # (scale, shift) of a reader: the part of [0, 3] that its ReLU passes on
        (0.5, -0.5): (1, 3),  # above 1
        (-0.5, 0.5): (0, 1),  # below 1
        (2.0, 1.0): (0, 3),  # all is above -0.5
        (-2.0, 10.0): (0, 3),  # all is below 5
        (0.0, 1.0): (0, 3),
        (0.5, -1.45): (2.9, 3),
        (1.0, -1.0): (1, 3),
        (-1.0, 1.0): (0, 1),
    }
    affine, wanted = np.array(list(cases)), np.array(list(cases.values()))
    ranges = np.tile([0.0, 3.0], (len(cases), 1))
    np.testing.assert_allclose(kept(ranges, affine), wanted, rtol=0, atol=1e-5)
    # With two readers, what either of them needs is kept.
    whole, upper = np.tile([[0.0, 0.0]], (len(cases), 1)), np.tile([[0.5, -1.0]], (len(cases), 1))
    np.testing.assert_allclose(kept(ranges, affine, whole), ranges, rtol=0, atol=1e-5)
    wanted_by_both = np.stack([np.minimum(wanted[:, 0], 2), np.full(len(cases), 3)], axis=1)
    np.testing.assert_allclose(kept(ranges, affine, upper), wanted_by_both, rtol=0, atol=1e-5)
    np.testing.assert_allclose(kept(ranges, upper, affine), wanted_by_both, rtol=0, atol=1e-5)


def test_a_channel_that_no_relu_lets_through_or_that_hardly_moves_gets_the_widest_ones_scale() -> None:
    affine = np.array([[1.0, 0.0], [1.0, -5.0], [-1.0, -1.0], [1.0, 9.0], [1.0, 9.0]])
    ranges = np.array([[0.0, 4.0], [0.0, 3.0], [0.0, 3.0], [2.0, 2.0039], [2.0, 2.0041]])
    wanted = [[0.0, 4.0], [0.0, 4.0], [0.0, 4.0], [2.0, 6.0], [2.0, 2.0041]]
    np.testing.assert_allclose(kept(ranges, affine), wanted, rtol=0, atol=1e-4)
    # The limit is a thousandth of the widest channel, whatever its width.
    for factor in (1e-3, 1e3):
        got = kept(ranges * factor, affine * [1, factor])
        np.testing.assert_allclose(got, np.array(wanted) * factor, rtol=1e-4, atol=1e-4 * factor)


def test_where_nothing_moves_nothing_breaks() -> None:
    got = kept(np.full((2, 2), 1.5), np.array([[1.0, 0.0], [-1.0, 0.0]]))
    np.testing.assert_allclose(got, np.full((2, 2), 1.5), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "attributes", "folded"),
    [
        (1, {}, True),
        (1, {"strides": [1, 1], "pads": [0, 0, 0, 0], "group": 1}, True),
        (1, {"strides": [2, 1]}, False),
        (1, {"strides": [1, 2]}, False),
        (1, {"pads": [1, 1, 1, 1]}, False),
        (1, {"pads": [0, 0, 0, 1]}, False),
        (1, {"group": 3}, False),
        (3, {}, False),
        (3, {"pads": [1, 1, 1, 1]}, False),
    ],
)
def test_a_batchnorm_is_folded_into_a_pointwise_conv_alone(
    kernel: int, attributes: dict[str, Any], folded: bool
) -> None:
    weights = np.random.default_rng(0).standard_normal(
        (3, 1 if "group" in attributes and not folded else 3, kernel, kernel)
    )
    constants = {"weights": weights.astype(np.float32), "scale": np.array([1, -2, 0.5], np.float32)}
    constants |= {"shift": np.array([0.1, 0.2, -0.3], np.float32), "mean": np.array([0.5, 0, -0.5], np.float32)}
    constants["variance"] = np.array([1, 2, 0.5], np.float32)
    norm = ["input", "scale", "shift", "mean", "variance"]
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("BatchNormalization", norm, ["norm"]),
            onnx.helper.make_node("Relu", ["norm"], ["relu"]),
            onnx.helper.make_node("Conv", ["relu", "weights"], ["logits"], **attributes),
        ],
        "one",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    clipped = run_pass(clip_batchnorms, model)
    assert bool(Graph(clipped).of_type("BatchNormalization")) is not folded
    images = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(logits(clipped, images), logits(model, images), rtol=0, atol=1e-5)
