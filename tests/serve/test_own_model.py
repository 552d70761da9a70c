"""A model of 2, 3 or 20,000 classes, with labels of its own, with or without ids, as softmax or sigmoid."""

import csv
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
import pytest
from starlette.testclient import TestClient

from serve.api.app import create_app
from serve.config.settings import ROOT, Config
from serve.errors import ModelError
from serve.model.classifier import load_classifier
from tests.constant_model import constant_model
from tests.serve.conftest import PHOTOS
from tests.serve.test_classify import classify, records
from tests.serve.test_openapi import nodes
from tests.server_process import running_server

BROWSER = "text/html,application/xhtml+xml"
TEMPERATURE = 1.7


@dataclass(frozen=True)
class Own:
    """A served model, with its file and what it should answer."""

    client: TestClient
    path: Path
    logits: npt.NDArray[np.float32]
    labels: list[str]
    ids: list[str] | None
    activation: str

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        scaled = self.logits.astype(np.float64) / TEMPERATURE
        if self.activation == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-scaled)))
        return np.asarray(np.exp(scaled) / np.exp(scaled).sum())

    @property
    def order(self) -> list[int]:
        return [int(index) for index in np.argsort(-self.logits, kind="stable")]


def write_model(path: Path, classes: int, activation: str, ids: bool) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    logits = (np.random.default_rng(classes).standard_normal(classes) * 2).astype(np.float32)
    entries: dict[str, Any] = {"labels": [f"class {index}, of mine" for index in range(classes)]}
    if ids:
        entries["ids"] = [f"id{index}" for index in range(classes)]
    more = {"activation": activation, "temperature": TEMPERATURE, "architecture": "densenet121"}
    path.write_bytes(constant_model(logits.tolist(), name="mine", **entries, **more))
    return logits, entries


# Every pair of a number of classes, an activation, and ids or none.
PAIRS = [
    (2, "softmax", True),
    (2, "sigmoid", False),
    (3, "softmax", True),
    (3, "sigmoid", False),
    (20_000, "softmax", False),
    (20_000, "sigmoid", True),
]


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}-{'ids' if pair[2] else 'no ids'}")
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    classes, activation, ids = request.param
    path = tmp_path_factory.mktemp("own") / "mine.onnx"
    logits, entries = write_model(path, classes, activation, ids)
    config = Config(model=str(path), allowed_hosts=("*",))
    classifier = load_classifier(config)
    with TestClient(create_app(config, classifier)) as client:
        yield Own(client, path, logits, entries["labels"], entries.get("ids"), activation)
    classifier.close()


def upload(own: Own, cat: bytes, **params: Any) -> httpx2.Response:
    return own.client.post("/upload", files={"file": ("cat.jpg", cat)}, params=params)


def test_an_upload_gets_its_labels_ids_and_probabilities(own: Own, cat: bytes) -> None:
    answer = upload(own, cat).json()
    wanted = own.order[:5]
    assert [entry["index"] for entry in answer["top_k"]] == wanted
    assert [entry["label"] for entry in answer["top_k"]] == [own.labels[index] for index in wanted]
    found = [entry["probability"] for entry in answer["top_k"]]
    assert found == pytest.approx(own.probabilities[wanted].tolist(), rel=1e-5)
    if own.ids:
        assert list(answer) == ["imagenet_id", "label", "probability", "top_k", "model"]
        assert [entry["imagenet_id"] for entry in answer["top_k"]] == [own.ids[index] for index in wanted]
    else:
        assert list(answer) == ["label", "probability", "top_k", "model"]
        assert all(list(entry) == ["index", "label", "probability"] for entry in answer["top_k"])
    assert answer["label"] == own.labels[wanted[0]]
    assert answer["model"] == "mine"


def test_all_classes_can_be_had_and_no_more(own: Own, cat: bytes) -> None:
    classes = len(own.labels)
    everything = upload(own, cat, top_k=classes).json()["top_k"]
    assert [entry["index"] for entry in everything] == own.order
    total = sum(entry["probability"] for entry in everything)
    assert total == pytest.approx(own.probabilities.sum(), rel=1e-4)
    beyond = upload(own, cat, top_k=classes + 1)
    assert beyond.status_code == 400
    assert f"from 1 to {classes}" in beyond.json()["detail"]


def test_a_threshold_leaves_out_what_is_less_probable(own: Own, cat: bytes) -> None:
    least = float(np.sort(own.probabilities)[-2])
    classes = len(own.labels)
    for threshold, count in ((0, min(classes, 100)), (least * 0.999, 2), (least * 1.001, 1), (1, 0)):
        kept = upload(own, cat, top_k=min(classes, 100), threshold=f"{threshold:.9f}").json()
        assert len(kept["top_k"]) == count
        assert kept["label"] == own.labels[own.order[0]]


def test_a_list_has_the_same_answers(own: Own, cat: bytes) -> None:
    alone = upload(own, cat, top_k=2).json()
    files = [("file", ("a.jpg", cat)), ("file", ("b.txt", b"text")), ("file", ("c.jpg", cat))]
    results = own.client.post("/upload", files=files, params={"top_k": 2}).json()["results"]
    assert results[0] == {"filename": "a.jpg", **alone}
    assert (results[1]["filename"], results[1]["status"]) == ("b.txt", 415)
    assert results[2] == {"filename": "c.jpg", **alone}


def test_the_card_tells_activation_temperature_and_labels(own: Own) -> None:
    card = own.client.get("/model").json()
    assert (card["class_count"], card["activation"], card["temperature"]) == (
        len(own.labels),
        own.activation,
        TEMPERATURE,
    )
    assert card["architecture"] == "densenet121"
    listed = {"labels": own.labels, **({"ids": own.ids} if own.ids else {})}
    assert own.client.get("/model?labels=true").json() == {**without_labels(card), **listed}
    assert own.client.get("/model?labels=false").json() == without_labels(card)
    if len(own.labels) > 100:
        assert card == without_labels(card)
        assert len(own.client.get("/model").content) < 1000
    else:
        assert card == {**without_labels(card), **listed}


def without_labels(card: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in card.items() if key not in ("labels", "ids")}


def test_the_page_says_what_the_model_does(own: Own) -> None:
    page = own.client.get("/", headers={"Accept": BROWSER}).text
    classes = len(own.labels)
    likeliest = "the 5 most likely" if classes > 5 else "the likeliest"
    own_each = ", each with a probability of its own," if own.activation == "sigmoid" else ""
    assert f"<p>mine, fp32, names {likeliest} of {classes} classes{own_each} for each picture.</p>" in page
    assert f"&quot;topK&quot;: {min(classes, 5)}," in page


def test_v2_has_logits_and_the_classification_extension(own: Own, cat: bytes) -> None:
    classes = len(own.labels)
    metadata = own.client.get("/v2/models/mine").json()
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, classes]}]

    def infer(**parameters: Any) -> httpx2.Response:
        size = {"parameters": {"binary_data_size": 4 + len(cat)}}
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], **size}
        head = json.dumps({"id": "[]}", "inputs": [tensor], "outputs": [{"name": "logits", "parameters": parameters}]})
        headers = {"Inference-Header-Content-Length": str(len(head))}
        content = head.encode() + len(cat).to_bytes(4, "little") + cat
        return own.client.post("/v2/models/mine/infer", content=content, headers=headers)

    answer = infer().json()
    assert answer["id"] == "[]}"
    (output,) = answer["outputs"]
    assert output["shape"] == [1, classes]
    np.testing.assert_array_equal(np.array(output["data"], np.float32), own.logits)  # neither temperature nor sigmoid
    (output,) = infer(classification=2).json()["outputs"]
    assert output["shape"] == [1, 2]
    assert output["data"] == [f"{own.logits[each]:.9g}:{each}:{own.labels[each]}" for each in own.order[:2]]
    (output,) = infer(classification=classes).json()["outputs"]
    assert [int(entry.split(":")[1]) for entry in output["data"]] == own.order
    binary = infer(classification=1, binary_data=True)
    assert binary.content.endswith(f":{own.order[0]}:{own.labels[own.order[0]]}".encode())
    assert infer(classification=classes + 1).json()["error"].endswith(f"from 1 to {classes}.")


def test_the_openapi_document_describes_its_answers(own: Own, cat: bytes) -> None:
    document = own.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    answer = upload(own, cat).json()
    always = set(schemas["Prediction"]["properties"]) - {"embedding"}
    assert set(answer) == always == set(schemas["Prediction"]["required"])
    assert set(answer["top_k"][0]) == set(schemas["Scored"]["properties"]) == set(schemas["Scored"]["required"])
    named = set(schemas["NamedPrediction"]["required"])
    assert named == set(schemas["NamedPrediction"]["properties"]) - {"embedding"} == {"filename", *answer}
    assert set(own.client.get("/model?labels=true").json()) >= set(schemas["ModelCard"]["required"])
    described = schemas["Scored"]["properties"]["probability"]["description"]
    assert described.startswith("Sigmoid" if own.activation == "sigmoid" else "Softmax")
    examples = [each["example"] for each in nodes(document["paths"]) if "example" in each]
    predictions = [example for example in examples if "top_k" in example]
    assert [set(example) for example in predictions] == [set(answer)]
    assert predictions[0]["label"] == own.labels[0]
    outputs = [example["outputs"][0] for example in examples if "model_name" in example]
    assert len(outputs) == 2
    for output in outputs:
        assert output["shape"] == [1, 2]
        assert [entry.split(":", 1)[1] for entry in output["data"]] == [f"{each}:{own.labels[each]}" for each in (0, 1)]
    assert document["components"]["parameters"]["topK"]["schema"]["maximum"] == len(own.labels)
    assert document["components"]["parameters"]["topK"]["schema"]["default"] == min(5, len(own.labels))
    assert document["components"]["parameters"]["labels"]["schema"]["default"] == (len(own.labels) <= 100)
    assert own.client.get("/docs").status_code == 200


def test_the_metrics_name_the_model_and_no_class(own: Own, cat: bytes) -> None:
    upload(own, cat)
    text = own.client.get("/metrics").text
    assert re.search(r'serve_build_info\{.*model="mine".*\} 1', text)
    assert "class 0" not in text


@pytest.mark.parametrize("form", ["jsonl", "csv", "table"])
def test_classify_writes_every_format(own: Own, form: str, cat: bytes) -> None:
    status, printed, error = classify("--model", own.path, PHOTOS / "cat.jpg", f"--{form}")
    assert (status, error.startswith("model: mine, fp32\n")) == (0, True), error
    answer = upload(own, cat).json()
    count = min(5, len(own.labels))
    if form == "jsonl":
        assert records(printed) == [{"file": str(PHOTOS / "cat.jpg"), **answer}]
    elif form == "csv":
        header, row = csv.reader(io.StringIO(printed))
        columns = [*(["imagenet_id"] if own.ids else []), "label", "probability"]
        ranks = [f"{column}_{rank + 1}" for rank in range(count) for column in columns]
        assert header == ["file", "error", *ranks, "model"]
        assert row[2:-1] == [str(entry[column]) for entry in answer["top_k"] for column in columns]
    else:
        assert [own.labels[index] in printed for index in own.order[:3]] == [True] * min(3, count)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_classify_resumes_sorts_and_shows(own: Own, form: str, tmp_path: Path) -> None:
    output, folder, page = tmp_path / f"output.{form}", tmp_path / "sorted", tmp_path / "page.html"
    command = ("--model", own.path, f"--{form}", "--output", output, "--sort-into", folder, "--yes", "--html", page)
    status, _, error = classify(*command, PHOTOS / "cat.jpg")
    assert status == 0, error
    first = output.read_text()
    status, _, error = classify(*command, PHOTOS / "cat.jpg", PHOTOS / "coffee.jpg", "--resume")
    assert (status, "1 from the earlier run" in error) == (0, True), error
    assert output.read_text().startswith(first)
    best = own.labels[own.order[0]]
    assert sorted(each.name for each in (folder / best).iterdir()) == ["cat.jpg", "coffee.jpg"]
    assert page.read_text().count(json.dumps(best)) == 2
    other = tmp_path / "other.onnx"
    write_model(other, len(own.labels), own.activation, not own.ids)
    status, _, error = classify("--model", other, f"--{form}", "--output", output, PHOTOS / "cat.jpg", "--resume")
    if form == "csv":
        assert (status, "has the columns of other labels" in error) == (2, True), error


def test_classify_measures_accuracy_by_label(own: Own, tmp_path: Path) -> None:
    best, second = (own.labels[index] for index in own.order[:2])
    files = [f"{best}/1.jpg", f"{best}/below/2.jpg", f"{second}/{best}.jpg", f"rest/{best}_4.jpg", "rest/other.jpg"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(PHOTOS / "cat.jpg")
    status, printed, error = classify("--model", own.path, tmp_path, "--evaluate", "--top-k", 1)
    assert status == 0
    assert all(len(record["top_k"]) == 1 for record in records(printed))
    many = len(own.labels) > 5
    top = ", top-5 100.00%" if many else ""
    assert f"top-1 75.00%{top} of 4 files in 2 classes\n1 more without a label, left out\nworst classes:\n" in error
    assert re.search(rf"^  {second} +0 of 1 right{', 1 in the top 5' if many else ''}$", error, re.MULTILINE)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(logits: list[float], **entries: Any) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(constant_model(logits, **entries))
        return path

    return written


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        ("labels.txt", "one\ntwo, too\n", ["one", "two, too"]),
        ("labels.csv", "index,id,name\n1,i1,b\n0,i0,a\n", ["a", "b"]),
        ("labels.json", '{"b": 1, "a": 0}', ["a", "b"]),
        ("labels.json", '{"0": ["n1", "a"], "1": ["n2", "b"]}', ["a", "b"]),
    ],
)
def test_a_class_index_overrides_the_files_labels(
    write: Write, tmp_path: Path, name: str, content: str, labels: list[str]
) -> None:
    (tmp_path / name).write_text(content)
    config = Config(model=str(write([1.0, 2.0], labels=["x", "y"], ids=["nx", "ny"])), class_index=tmp_path / name)
    classifier = load_classifier(config)
    assert [label.name for label in classifier.labels] == labels
    card = classifier.card(with_labels=True)
    assert card["labels"] == labels
    assert card.get("ids") != ["nx", "ny"]
    classifier.close()


def test_a_file_of_imagenets_classes_without_labels_has_imagenets(write: Write) -> None:
    classifier = load_classifier(Config(model=str(write([0.0] * 1000))))
    assert classifier.labels[207].name == "golden_retriever"
    assert classifier.labels[207].imagenet_id == "n02099601"
    classifier.close()


def test_one_class_is_served(write: Write, cat: bytes) -> None:
    config = Config(model=str(write([2.0], labels=["defect"], activation="sigmoid")), allowed_hosts=("*",))
    classifier = load_classifier(config)
    with TestClient(create_app(config, classifier)) as client:
        answer = client.post("/upload", files={"file": cat}).json()
        assert answer["top_k"] == [{"index": 0, "label": "defect", "probability": 0.880797}]
        assert "says how likely its one class is for each picture" in client.get("/", headers={"Accept": BROWSER}).text
        assert client.get("/openapi.json").status_code == 200
    classifier.close()


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({}, "it has 3 classes and no labels; name a file of them with --class-index"),
        (
            {"labels": ["a", "b"]},
            "its labels do not fit: 2 labels for a model of 3 classes: none for class 2; set 'labels' to one name",
        ),
        ({"labels": list("abcd")}, "4 labels for a model of 3 classes: 'd' are too many"),
        ({"labels": list("aba")}, "classes 0 and 2 have the same label, 'a'"),
        ({"labels": ["a", "b", "\x1b"]}, "the label of class 2 is .*, not a name without control characters"),
        ({"labels": ["a", " ", "c"]}, "its labels do not fit: the label of class 1 is ' ', not a name"),
        ({"labels": list("abc"), "ids": ["n1", "n\n", "n3"]}, r"the id of class 1 is 'n\\n', not a name"),
        ({"labels": ["a", "b", ""]}, "'labels' that are not a list of non-empty strings"),
        ({"labels": "abc"}, "'labels' that are not a list of non-empty strings"),
        ({"labels": list("abc"), "ids": ["n1", "n2"]}, "3 labels but 2 ids; give each label an id, or none"),
        ({"labels": list("abc"), "ids": [1, 2, 3]}, "'ids' that are not a list of non-empty strings"),
        ({"labels": list("abc"), "activation": "relu"}, 'activation=\'relu\'; set it to "softmax" or "sigmoid"'),
        ({"labels": list("abc"), "temperature": 0}, "temperature=0; set it to a number from 0.001 to 1000"),
        ({"labels": list("abc"), "temperature": float("nan")}, "not JSON in 'temperature'"),
        ({"labels": ["a", "b", "\ud800"]}, "not JSON in 'labels'"),
        ({"name": "a/b"}, "name='a/b'; set it to 1 to 100 printable characters without a slash"),
        ({"name": "a\nb"}, r"name='a\\nb'; set it to 1 to 100 printable characters without a slash"),
        ({"name": ""}, "name=''; set it to 1 to 100 printable characters"),
        ({"name": ["a" * 1000]}, r"name=.*aaa\.\.\.aaa.*; set it to 1 to 100 printable characters"),
        ({"variant": "fp16"}, 'variant=.fp16.; set it to "fp32" or "int8"'),
        ({"class_count": 3.0}, "class_count=3.0; set it to the number of its logits"),
        ({"class_count": 4}, r"\[N, 4\] as its metadata says; name it so .*, or correct class_count"),
        ({"labels": list("abc"), "crop": "224"}, "resize=256 and crop='224', not pixels with crop ≤ resize ≤ 4096"),
        ({"labels": list("abc"), "mean": [10**400] * 3}, r"mean=\[.*\], not three numbers from -10000 to 10000"),
        ({"labels": list("abc"), "mean": ["0.5"] * 3}, r"mean=\[.*\], not three numbers from -10000 to 10000"),
        ({"labels": list("abc"), "mean": "0.5" * 10**5}, "mean='.*', not three numbers from -10000 to 10000"),
        ({"labels": list("abc"), "std": [1e-320] * 3}, r"std=\[.*\], not three numbers from 0.0001 to 10000"),
        ({"labels": list("abc"), "interpolation": "x" * 10**5}, "interpolation='xx.*', not one of nearest, bilinear"),
        ({"crop": 200}, "crop=200, but its input is 224 pixels wide; set crop to that"),
        (
            {"mean": None, "crop": None},
            r"lacks crop, mean; add what was used in training, such as crop=224, mean=\[0.485",
        ),
    ],
)
def test_a_file_that_is_refused_is_told_what_would_make_it_servable(
    write: Write, entries: dict[str, Any], words: str
) -> None:
    path = write([0.0, 1.0, 2.0], **entries)
    with pytest.raises(ModelError, match=words) as found:
        load_classifier(Config(model=str(path)))
    message = str(found.value)
    assert message.startswith(f"model {path}: ")
    assert message.endswith(
        "; docs/model-files.md shows how to make it servable; 'make export WEIGHTS=PATH' makes one from weights"
    )
    assert message.isprintable()
    assert len(message) < 800 + len(str(path))


def test_a_file_that_is_no_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "weights.onnx"
    path.write_bytes(b"PK\x03\x04 a state dict")
    with pytest.raises(
        ModelError, match=r"can load with engine=cpu: .*Protobuf parsing failed.*'make export WEIGHTS=PATH' makes one"
    ):
        load_classifier(Config(model=str(path)))


def test_many_classes_of_many_images_are_too_many_for_one_answer(tmp_path: Path, cat: bytes) -> None:
    path = tmp_path / "mine.onnx"
    write_model(path, 20_000, "softmax", ids=True)
    config = Config(model=str(path), allowed_hosts=("*",))
    classifier = load_classifier(config)
    with TestClient(create_app(config, classifier)) as client:
        five = client.post("/upload?top_k=20000", files=[("file", ("a.jpg", cat))] * 5)
        assert five.status_code == 200
        assert [len(result["top_k"]) for result in five.json()["results"]] == [20_000] * 5
        six = client.post("/upload?top_k=20000", files=[("file", ("a.jpg", cat))] * 6)
        assert (six.status_code, six.json()["reason"]) == (400, "bad_parameter")
        assert "for 6 images asks for 120000 classes in one answer; the limit is 100000" in six.json()["detail"]
        assert client.post("/upload?top_k=3125", files=[("file", ("a.jpg", cat))] * 32).status_code == 200
    classifier.close()


def test_large_answers_do_not_stop_the_event_loop(tmp_path: Path, cat: bytes) -> None:
    """Five times 20,000 classes take half a second to write; meanwhile a probe waits for one image at most."""
    path = tmp_path / "mine.onnx"
    write_model(path, 20_000, "softmax", ids=True)
    waited = []
    with running_server(ROOT / ".venv/runtime/bin/python", "--model", str(path), "--log-format", "json") as server:
        done = threading.Event()

        def probe() -> None:
            with httpx2.Client() as client:
                while not done.is_set():
                    started = time.perf_counter()
                    client.get(f"{server.url}/livez")
                    waited.append(time.perf_counter() - started)

        prober = threading.Thread(target=probe)
        prober.start()
        for _ in range(3):
            files = [("file", ("a.jpg", cat))] * 5
            assert httpx2.post(f"{server.url}/upload?top_k=20000", files=files, timeout=30).status_code == 200
        done.set()
        prober.join()
    assert max(waited) < 0.3
