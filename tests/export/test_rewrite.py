"""Each rewrite leaves the network's answers alone, and does what it is for; on a small DenseNet and on the real one."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export.calibration import Ranges, observe_ranges
from export.errors import QuantisationError
from export.int8 import rewrite
from export.onnx_graph import Graph, concat_pieces
from export.rewrite import HEADROOM, chain_concats, clip_batchnorms, equalise_channels, merge_average_pools
from tests.export.conftest import Network

UNCHANGED = 1e-3


def logits(model: onnx.ModelProto, pictures: np.ndarray) -> np.ndarray:
    result: np.ndarray = ort.InferenceSession(model.SerializeToString()).run(["logits"], {"input": pictures})[0]
    return result


def ranges_of(network: Network) -> Ranges:
    return observe_ranges(network.model, network.calibration_pictures(), lambda done: None)


def steps(network: Network) -> list[Callable[[onnx.ModelProto], onnx.ModelProto]]:
    ranges = ranges_of(network)
    return [lambda model: equalise_channels(model, ranges), clip_batchnorms, merge_average_pools, chain_concats]


def test_no_step_changes_an_answer(any_network: Network) -> None:
    model = any_network.model
    pictures = any_network.other_pictures
    wanted = logits(model, pictures)
    for step in steps(any_network):
        before = model.SerializeToString()
        rewritten = step(model)
        assert model.SerializeToString() == before  # the step made a model of its own
        onnx.checker.check_model(rewritten, full_check=True)
        assert np.abs(logits(rewritten, pictures) - wanted).max() <= UNCHANGED
        model = rewritten


def test_equalised_channels_lie_between_0_and_1(small_densenet: Network) -> None:
    equalised = equalise_channels(small_densenet.model, ranges_of(small_densenet))
    graph = Graph(equalised)
    pieces = {piece for norm in graph.of_type("BatchNormalization") for piece in concat_pieces(graph, norm.input[0])}
    seen = observe_ranges(equalised, small_densenet.calibration_pictures(), lambda done: None)
    assert pieces <= set(seen)
    used = np.concatenate([np.clip(seen[piece][1], 0, 1) - np.clip(seen[piece][0], 0, 1) for piece in pieces])
    assert np.quantile(used, 0.3) == pytest.approx(1 / HEADROOM, abs=1e-4)  # all of it but for pictures that go further
    # What lies outside no ReLU tells apart.
    for piece in pieces:
        producer = graph.producer(piece)
        assert producer is not None
        producer.output[0] = f"{piece}.any"
        graph.constants |= {"zero": np.array(0, np.float32), "one": np.array(1, np.float32)}
        clip = onnx.helper.make_node("Clip", [f"{piece}.any", "zero", "one"], [piece])
        graph.nodes.insert(graph.nodes.index(producer) + 1, clip)
    pictures = small_densenet.calibrated_on
    np.testing.assert_allclose(
        logits(graph.to_model(), pictures), logits(small_densenet.model, pictures), rtol=0, atol=UNCHANGED
    )


def test_no_batchnorm_or_relu_after_one_is_left(small_densenet: Network) -> None:
    clipped = clip_batchnorms(small_densenet.model)
    graph = Graph(clipped)
    assert not graph.of_type("BatchNormalization")
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
    pictures = small_densenet.other_pictures
    np.testing.assert_allclose(
        logits(clip_batchnorms(changed), pictures), logits(changed, pictures), rtol=0, atol=UNCHANGED
    )


def test_average_pools_become_strided_convs(small_densenet: Network) -> None:
    assert Graph(small_densenet.model).of_type("AveragePool")
    assert not Graph(merge_average_pools(small_densenet.model)).of_type("AveragePool")


def test_concats_have_two_pieces_at_most(small_densenet: Network) -> None:
    assert max(len(node.input) for node in Graph(small_densenet.model).of_type("Concat")) > 2
    assert max(len(node.input) for node in Graph(chain_concats(small_densenet.model)).of_type("Concat")) == 2


def test_another_architecture_passes_unchanged(resnet18: Network) -> None:
    model = resnet18.model
    for step in steps(resnet18):
        model = step(model)
    assert [node.op_type for node in model.graph.node] == [node.op_type for node in resnet18.model.graph.node]


@pytest.mark.parametrize("reader", ["Relu", "Conv"])
def test_a_concat_that_something_else_reads_is_left_alone(reader: str, small_densenet: Network) -> None:
    """Its channels may not be rescaled, for only a BatchNorm scales them back."""
    graph = Graph(small_densenet.model)
    concat = graph.of_type("Concat")[0]
    norm = next(node for node in graph.consumers(concat.output[0]) if node.op_type == "BatchNormalization")
    inputs = [concat.input[0]] if reader == "Relu" else [concat.input[0], _weight_reading(graph, concat.input[0])]
    graph.nodes.insert(graph.nodes.index(norm), onnx.helper.make_node(reader, inputs, ["aside"]))
    model = graph.to_model()
    assert equalise_channels(model, ranges_of(small_densenet)) is model
    with pytest.raises(QuantisationError, match="has no common scale"):
        rewrite(model, ranges_of(small_densenet))


def _weight_reading(graph: Graph, tensor: str) -> str:
    channels = graph.constants[graph.of_type("Conv")[0].input[1]].shape[0]
    graph.constants["aside.weight"] = np.ones((1, channels, 1, 1), np.float32)
    return "aside.weight"
