"""The statistics of a calibration, compared with all of a network's tensors at once."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from export.int8.calibration import observe_means, observe_ranges
from export.int8.pipeline import rewrite
from export.onnx_graph import Array, Graph
from tests.export.conftest import Network
from tests.small_densenet import batches


def every_tensor(model: onnx.ModelProto, images: Array) -> dict[str, Array]:
    """The outputs of all nodes of a model on these images, `[N, ...]` each, and the images."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = [node.output[0] for node in model.graph.node if node.output[0] != "logits"]
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = ort.InferenceSession(watched.SerializeToString())
    return {"input": images, **dict(zip(names, session.run(names, {"input": images}), strict=True))}


@pytest.fixture(params=["small_densenet", "small_mobilenet"])
def network(request: pytest.FixtureRequest) -> Network:
    found: Network = request.getfixturevalue(request.param)
    return found


def test_ranges_are_the_smallest_and_largest_values_of_what_8_bits_store(network: Network) -> None:
    images = network.calibration_images[:7]
    told: list[int] = []
    graph, values = Graph(network.model), every_tensor(network.model, images)
    ranges = observe_ranges(graph, [images[:3], images[3:4], images[4:]], told.append)
    assert told == [1, 2, 3]
    for name, value in values.items():
        readers = {node.op_type for node in graph.consumers(name)}
        producer = graph.producer(name)
        stored = producer is not None and producer.op_type in {"Conv", "Relu", "Clip", "Add", "MaxPool", "AveragePool"}
        if not stored or readers in ({"Relu"}, {"Clip"}):
            assert name not in ranges
            continue
        axes = (0, 2, 3) if readers & {"Concat", "BatchNormalization"} else None
        for got, wanted in zip(ranges[name], (value.min(axes), value.max(axes)), strict=True):
            np.testing.assert_allclose(got, np.atleast_1d(wanted), rtol=1e-4, atol=1e-3)
    assert set(ranges) <= set(values)


def test_means_are_those_of_each_channel_and_shares_those_between_the_thresholds(network: Network) -> None:
    images = network.calibration_images[:7]
    graph = Graph(network.model)
    rewrite(graph, observe_ranges(graph, batches(images), lambda done: None))
    told: list[int] = []
    means, active = observe_means(graph, batches(images), told.append)
    assert told == [1, 2, 3, 4, 5, 6, 7]
    values = every_tensor(graph.to_model(), images)
    read = {node.input[0] for node in graph.of_type("Conv", "ReduceMean")}
    assert list(means) == sorted(read)  # so that a record always has the same order
    for name, mean in means.items():
        np.testing.assert_allclose(mean, values[name].mean((0, 2, 3), dtype=np.float64), rtol=1e-4, atol=1e-4)
    assert set(active) == {node.output[0] for node in graph.of_type("Min")}
    for name, share in active.items():
        low, high = (graph.constants[f"{name}.{end}"] for end in ("low", "high"))
        wanted = ((values[name] > low) & (values[name] < high)).mean((0, 2, 3))
        np.testing.assert_allclose(share, wanted, rtol=0, atol=2e-3)
        assert share.min() < 0.1
        assert share.max() > 0.9
