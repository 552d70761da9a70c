"""The files stored for the tests without torch are still what torchvision and the generators make."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import torch

from export.torch_to_onnx import export_graph
from tests import small_densenet, tiny_model
from tests.references import ARRAYS, DIGESTS, pictures, torchvision_references


def test_the_stored_references_are_torchvisions() -> None:
    arrays, digests = torchvision_references()
    stored = np.load(ARRAYS)
    assert set(stored) == set(arrays) == {path.name for path in pictures()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored[name], array)
    assert json.loads(DIGESTS.read_text()) == digests


def test_the_tiny_model_is_reproducible() -> None:
    assert tiny_model.PATH.read_bytes() == tiny_model.tiny_model()
    assert tiny_model.THREE_CLASSES.read_bytes() == tiny_model.tiny_model(tiny_model.THREE_CLASSES_CARD, features=False)
    assert tiny_model.MAPPED.read_bytes() == tiny_model.mapped_model()


def test_the_small_densenet_is_reproducible() -> None:
    network, images = small_densenet.network(), small_densenet.images(8, 3)
    with torch.no_grad():
        wanted = network(torch.from_numpy(images)).numpy()
    made = export_graph(network, small_densenet.SIDE)
    stored = onnx.load(small_densenet.PATH)
    assert [node.op_type for node in stored.graph.node] == [node.op_type for node in made.graph.node]
    for model in (stored, made):
        got = ort.InferenceSession(model.SerializeToString()).run(["logits"], {"input": images})[0]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-3)


def test_the_small_densenet_has_the_traits_of_a_trained_network() -> None:
    stored = {
        entry.name: onnx.numpy_helper.to_array(entry) for entry in onnx.load(small_densenet.PATH).graph.initializer
    }
    scales = np.concatenate([values for name, values in stored.items() if "norm" in name and name.endswith(".weight")])
    assert min((scales < 0).mean(), (scales > 0).mean(), 4 * (scales == 0).mean()) > 0.1
    assert np.quantile(np.abs(scales), 0.9) > 5 * np.quantile(np.abs(scales[scales != 0]), 0.1)
    session = ort.InferenceSession(small_densenet.PATH)
    images = small_densenet.images(40, 11)
    classes = session.run(["logits"], {"input": images})[0].argmax(1)
    assert np.bincount(classes, minlength=small_densenet.CLASSES).min() >= 2
