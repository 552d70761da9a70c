"""The QDQ model has the int8 model's numbers and answers, on onnxruntime's CPU provider and on OpenVINO."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper

from export.engines import CPU, ENTRY, OPENVINO, open_session
from export.errors import QuantizationError
from export.evaluate import compare
from export.int8.openvino import try_openvino
from export.int8.pipeline import Int8Result, make_int8
from export.int8.qdq import to_qdq
from export.onnx_graph import Array, Graph, attribute
from serve.config.settings import ROOT
from serve.imaging.normalise import to_pixels
from serve.model import openvino_plugin
from tests.export.conftest import Network
from tests.export.test_quantize import calibrated

NETWORKS = ["small_densenet", "small_mobilenet", "resnet18"]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    found: Network = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def int8(network: Network) -> onnx.ModelProto:
    return make_int8(network.model, network.architecture, calibrated(network))


def answers(model: onnx.ModelProto, network: Network, engine: str = CPU) -> Array:
    named = onnx.ModelProto()
    named.CopyFrom(model)
    helper.set_model_props(named, {ENTRY: json.dumps(engine)})
    session = open_session(named.SerializeToString(), 1)
    pixels = to_pixels(network.other_images, network.architecture.preprocessing)
    return np.concatenate([session.run(["logits"], {"input": image[None]})[0] for image in pixels])


@pytest.mark.parametrize("engine", [CPU, *([OPENVINO] if not openvino_plugin.obstacle() else [])])
def test_answers_are_the_int8_models_but_for_rounding(network: Network, int8: onnx.ModelProto, engine: str) -> None:
    wanted, got = answers(int8, network), answers(to_qdq(int8), network, engine)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).mean() <= 0.04 * wanted.std()  # twice what was measured
    assert compare(got, wanted, [None] * len(got)).clear_agreement in {None, 1.0}


def test_it_is_a_plain_onnx_model_of_the_same_input_output_and_metadata(int8: onnx.ModelProto) -> None:
    int8.metadata_props.add(key="note", value='"kept"')
    model = to_qdq(int8)
    onnx.checker.check_model(model, full_check=True)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 20)}
    assert {node.domain for node in model.graph.node} == {""}
    assert (model.graph.input, model.graph.output) == (int8.graph.input, int8.graph.output)
    assert model.metadata_props == int8.metadata_props
    del int8.metadata_props[:]


def test_convolutions_and_concats_read_8_bits(int8: onnx.ModelProto) -> None:
    graph = Graph(to_qdq(int8))
    convs, concats = graph.of_type("Conv"), graph.of_type("Concat")
    assert len(convs) == len(Graph(int8).of_type("QLinearConv"))
    for node in [*convs, *concats]:
        for source in node.input[:2] if node.op_type == "Conv" else node.input:
            producer = graph.producer(source)
            assert producer is not None
            if producer in concats:  # whose inputs have one scale, so it joins bytes
                continue
            assert producer.op_type == "DequantizeLinear", source
    for conv in convs:
        weight = graph.producer(conv.input[1])
        assert weight is not None
        values, scales = (graph.constants[name] for name in weight.input)
        assert (values.dtype, scales.shape, attribute(weight, "axis")) == (np.int8, values.shape[:1], 0)


def test_weights_and_scales_are_the_int8_models(int8: onnx.ModelProto) -> None:
    """Up to the sign of input channels, see `_rectify`."""
    theirs, ours = Graph(int8), Graph(to_qdq(int8))
    for node in theirs.of_type("QLinearConv"):
        weight, scale = node.input[3], node.input[4]
        assert np.array_equal(np.abs(ours.constants[weight]), np.abs(theirs.constants[weight]))
        assert np.array_equal(ours.constants[scale], theirs.constants[scale])


def test_the_same_model_gives_the_same_bytes_in_every_process() -> None:
    """Python orders sets of strings differently in each."""
    code = """
import hashlib, onnx
from export.int8.qdq import to_qdq
model = to_qdq(onnx.load("models/efficientnet_lite0.onnx"))
print(hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest())
"""
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout
        for seed in range(1, 4)
    }
    assert len(hashes) == 1


def test_an_operator_that_no_int8_model_has_is_refused(small_densenet: Network) -> None:
    with pytest.raises(QuantizationError, match=r"^Conv '\w+' cannot be rewritten for other engines$"):
        to_qdq(small_densenet.model)


def test_a_channel_that_is_clipped_at_both_ends_is_refused(small_densenet: Network) -> None:
    graph = Graph(make_int8(small_densenet.model, small_densenet.architecture, calibrated(small_densenet)))
    upper = next(node for node in graph.of_type("Min") if graph.consumers(node.output[0])[0].op_type == "QLinearConv")
    lower = graph.producer(upper.input[0])
    assert lower is not None
    for node, value in ((lower, 10), (upper, 200)):
        expand = graph.producer(node.input[1])
        assert expand is not None
        graph.constants[expand.input[0]] = np.full_like(graph.constants[expand.input[0]], value)
    with pytest.raises(QuantizationError, match="has a channel that is clipped at both ends"):
        to_qdq(graph.to_model())


def test_where_there_is_no_int8_model_nothing_is_said_of_openvino() -> None:
    result = try_openvino(Int8Result(refusal="int8 loses too much"))
    assert (result.engine, result.model, result.refusal) == (OPENVINO, None, "")
