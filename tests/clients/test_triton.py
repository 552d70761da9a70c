"""NVIDIA's `tritonclient[http]`, a client for the Open Inference Protocol with binary tensors."""

import math
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.clients.conftest import PYTHON, TABLE
from tests.server_process import ROOT, ServerProcess

CLIENT = f"tritonclient {version('tritonclient')}"
# Runs in the server's environment: writes images, normalised, to a file.
TO_TENSOR = """
import sys, numpy
from serve.config.settings import load_config
from serve.imaging.normalise import normalise
from serve.model.classifier import load_classifier
classifier = load_classifier(load_config(["--model", sys.argv[1]], {}))
crops = [classifier.prepare(classifier.open(open(path, "rb").read(), 1)).pixels for path in sys.argv[3:]]
rows = [normalise(pixels, classifier.preprocessing) for pixels in crops]
numpy.save(sys.argv[2], numpy.concatenate(rows))
"""


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Any]:
    with triton.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=60) as started:
        yield started


@pytest.fixture(scope="module")
def model(server: ServerProcess) -> str:
    name: str = requests.get(f"{server.url}/model", timeout=10).json()["name"]
    return name


def uploaded(server: ServerProcess, image: bytes, k: int) -> list[dict[str, Any]]:
    answer = requests.post(f"{server.url}/upload?top_k={k}", files={"file": image}, timeout=10)
    top: list[dict[str, Any]] = answer.json()["top_k"]
    return top


def images(encoded: list[bytes]) -> Any:
    tensor = triton.InferInput("image", [len(encoded)], "BYTES")
    tensor.set_data_from_numpy(np.array(encoded, dtype=np.object_), binary_data=True)
    return tensor


def softmax(logits: Any) -> Any:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_it_finds_server_and_model(client: Any, model: str, server: ServerProcess) -> None:
    length = requests.get(f"{server.url}/model", timeout=10).json()["embedding"]["length"]
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "densenet-server"
    metadata = client.get_model_metadata(model)
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["input", "image"]
    assert metadata["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [-1, 1000]},
        {"name": "embedding", "datatype": "FP32", "shape": [-1, length]},
    ]
    TABLE.append((CLIENT, "server and model are live, ready and described"))


def test_images_give_the_same_predictions_as_upload(
    client: Any, model: str, server: ServerProcess, photos: dict[str, bytes]
) -> None:
    encoded = list(photos.values())
    for sent in ([encoded[0]], encoded):
        logits = client.infer(model, [images(sent)]).as_numpy("logits")
        assert (logits.shape, logits.dtype) == ((len(sent), 1000), np.float32)
        for row, image in zip(softmax(logits), sent, strict=True):
            expected = [entry["probability"] for entry in uploaded(server, image, 5)]
            assert np.allclose(np.sort(row)[::-1][:5], expected, rtol=1e-4)
        TABLE.append((CLIENT, f"{len(sent)} JPEG as BYTES: probabilities equal /upload's"))


def test_a_version_is_found_by_its_number(client: Any, model: str, photos: dict[str, bytes]) -> None:
    image = images([photos["cat"]])
    assert client.is_model_ready(model, model_version="1")
    assert not client.is_model_ready(model, model_version="2")
    (version_named,) = client.get_model_metadata(model, model_version="1")["versions"]
    answer = client.infer(model, [image], model_version=version_named)
    assert answer.get_response()["model_version"] == "1"
    assert np.array_equal(answer.as_numpy("logits"), client.infer(model, [image]).as_numpy("logits"))
    with pytest.raises(InferenceServerException, match="There is no version '2'"):
        client.infer(model, [image], model_version="2")
    TABLE.append((CLIENT, 'model_version="1": the same answers; "2": 404'))


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_tensors_give_the_same_logits_as_images(
    client: Any, model: str, server: ServerProcess, photos: dict[str, bytes], tmp_path: Any, binary: bool, run: Any
) -> None:
    paths = [ROOT / "tests" / "data" / "photos" / f"{name}.jpg" for name in photos]
    run(PYTHON, "-c", TO_TENSOR, model, tmp_path / "rows.npy", *paths)
    rows = np.load(tmp_path / "rows.npy")
    rows = rows if binary else rows[:2]
    tensor = triton.InferInput("input", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    wanted = [triton.InferRequestedOutput("logits", binary_data=binary)]
    answer = client.infer(model, [tensor], outputs=wanted, request_id="of-mine")
    assert answer.get_response()["id"] == "of-mine"
    expected = client.infer(model, [images(list(photos.values())[: len(rows)])]).as_numpy("logits")
    assert np.allclose(answer.as_numpy("logits"), expected, atol=1e-5)
    TABLE.append((CLIENT, f"{len(rows)} FP32 tensors, {'binary' if binary else 'JSON'}: logits equal the pictures'"))


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_classification_names_the_same_classes_as_upload(
    client: Any, model: str, server: ServerProcess, photos: dict[str, bytes], binary: bool
) -> None:
    encoded = list(photos.values())
    wanted = [triton.InferRequestedOutput("logits", binary_data=binary, class_count=3)]
    ranked = client.infer(model, [images(encoded)], outputs=wanted).as_numpy("logits")
    assert ranked.shape == (len(encoded), 3)
    for row, image in zip(ranked, encoded, strict=True):
        parts = [(entry.decode() if isinstance(entry, bytes) else entry).split(":") for entry in row]
        top = uploaded(server, image, 3)
        assert [label for _, _, label in parts] == [entry["label"] for entry in top]
        ratio = math.exp(float(parts[0][0]) - float(parts[1][0]))
        assert math.isclose(ratio, top[0]["probability"] / top[1]["probability"], rel_tol=1e-3)
    TABLE.append((CLIENT, f"classification, {'binary' if binary else 'JSON'}: labels and ratios equal /upload's"))


def broken_shape() -> Any:
    tensor = triton.InferInput("input", [1, 3, 10, 10], "FP32")
    return tensor.set_data_from_numpy(np.zeros((1, 3, 10, 10), np.float32))


def broken_datatype() -> Any:
    tensor = triton.InferInput("input", [1, 3, 224, 224], "FP64")
    return tensor.set_data_from_numpy(np.zeros((1, 3, 224, 224), np.float64))


def broken_image() -> Any:
    return images([b"\xff\xd8\xff\xe0 no picture"])


@pytest.mark.parametrize(
    ("make", "status", "words"),
    [
        (broken_shape, "400", "The shape of 'input' is"),
        (broken_datatype, "400", "The datatype of 'input' is"),
        (broken_image, "422", "truncated or corrupt"),
    ],
)
def test_errors_arrive_as_the_protocols_error(
    client: Any, model: str, make: Callable[[], Any], status: str, words: str
) -> None:
    with pytest.raises(InferenceServerException, match=words) as refusal:
        client.infer(model, [make()])
    assert refusal.value.status() == status
    TABLE.append((CLIENT, f"{make.__name__.replace('_', ' ')}: {status}, {refusal.value.message()[:70]}"))
