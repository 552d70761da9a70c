"""Tests the Open Inference Protocol on the application in this process, with valid and malformed tensors."""

import base64
import contextlib
import json
import math
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

from serve.api.app import create_app
from serve.api.v2.messages import InferenceRequest, Signature, parse_request, write_response
from serve.api.v2.outputs import RequestedOutput
from serve.config.settings import Config
from serve.errors import BadTensor, UploadTooLarge
from serve.imaging.decode import decode, open_image
from serve.imaging.limits import ImageLimits
from serve.imaging.normalise import to_input
from serve.model.classifier import Classifier, load_classifier
from serve.model.labels import Label
from tests.references import PICTURES
from tests.serve.conftest import ClientFor
from tests.tiny_model import PIXELS

INFER = "/v2/models/tiny/infer"
LENGTH = "Inference-Header-Content-Length"


def tensor(cat: bytes, classifier: Classifier) -> Any:
    spec = classifier.preprocessing
    return to_input(decode(open_image(cat, spec, ImageLimits(50_000_000))), spec)


def message(body: dict[str, Any], *raw: bytes) -> tuple[bytes, dict[str, str]]:
    head = json.dumps(body).encode()
    return head + b"".join(raw), {LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}


def framed(*pictures: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(picture)) + picture for picture in pictures)


def infer(client: TestClient, body: dict[str, Any], *raw: bytes) -> httpx2.Response:
    if not raw:
        return client.post(INFER, json=body)
    content, headers = message(body, *raw)
    return client.post(INFER, content=content, headers=headers)


def assert_error(answer: httpx2.Response, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]


def images(count: int, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [count], **more}]}


def floats(*shape: int, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "input", "datatype": "FP32", "shape": list(shape), **more}]}


def logits_of(answer: httpx2.Response) -> Any:
    assert answer.status_code == 200, answer.text
    if LENGTH in answer.headers:
        length = int(answer.headers[LENGTH])
        output = json.loads(answer.content[:length])["outputs"][0]
        assert output["parameters"] == {"binary_data_size": len(answer.content) - length}
        return np.frombuffer(answer.content[length:], "<f4").reshape(output["shape"])
    output = answer.json()["outputs"][0]
    assert (output["name"], output["datatype"]) == ("logits", "FP32")
    return np.array(output["data"], np.float32).reshape(output["shape"])


def test_classes_of_equal_logits_come_in_the_order_of_the_index() -> None:
    """A thousand logits with few distinct values, because unstable sorts look stable on short lists."""
    logits = np.random.default_rng(0).integers(0, 4, (1, 1000)).astype(np.float32)
    signature = Signature("tiny", 2, tuple(Label(f"n{number}", str(number)) for number in range(1000)), 1)
    answer, _ = write_response(
        InferenceRequest(None, [], [b""], [RequestedOutput("logits", False, 1000)]), {"logits": logits}, signature
    )
    ranked = [int(entry.split(":")[1]) for entry in json.loads(answer)["outputs"][0]["data"]]
    assert ranked == sorted(range(1000), key=lambda number: (-logits[0, number], number))


def test_server_and_model_metadata_follow_the_protocol(client: TestClient) -> None:
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data", "classification"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    assert client.get("/v2/models/tiny").json() == {
        "name": "tiny",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "input", "datatype": "FP32", "shape": [-1, 3, 224, 224]},
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 1000]},
            {"name": "embedding", "datatype": "FP32", "shape": [-1, 3]},
        ],
    }


def test_every_way_of_sending_gives_the_same_logits(client: TestClient, classifier: Classifier, cat: bytes) -> None:
    row = tensor(cat, classifier)
    expected = classifier.model.logits(row)
    raw, text = row.astype("<f4").tobytes(), base64.b64encode(cat).decode()
    size = {"parameters": {"binary_data_size": len(raw)}}
    framing = {"parameters": {"binary_data_size": len(cat) + 4}}
    for answer in (
        infer(client, floats(1, 3, 224, 224, data=row.tolist())),
        infer(client, floats(1, 3, 224, 224, data=row.ravel().tolist())),
        infer(client, floats(1, 3, 224, 224, **size), raw),
        infer(client, floats(1, 3, 224, 224, **size) | {"parameters": {"binary_data_output": True}}, raw),
        infer(client, images(1, data=[text])),
        infer(client, images(1, **framing), framed(cat)),
        infer(
            client,
            images(1, **framing) | {"outputs": [{"name": "logits", "parameters": {"binary_data": True}}]},
            framed(cat),
        ),
    ):
        found = logits_of(answer)
        assert found.shape == (1, 1000)
        assert np.abs(found - expected).max() < 1e-5


@pytest.fixture
def pixels_client(config: Config) -> Iterator[TestClient]:
    """A server of a model that takes pixels, with the weights of the other tests' model."""
    changed = replace(config, model=str(PIXELS))
    classifier = load_classifier(changed)
    with TestClient(create_app(changed, classifier)) as client:
        yield client
    classifier.close()


def test_a_model_that_takes_pixels_gets_those_that_a_tensor_was_made_from(
    pixels_client: TestClient, client: TestClient, classifier: Classifier, cat: bytes
) -> None:
    row = tensor(cat, classifier)
    raw, body = row.astype("<f4").tobytes(), floats(1, 3, 224, 224, parameters={"binary_data_size": row.nbytes})
    from_tensor = logits_of(infer(pixels_client, body, raw))
    framing = {"parameters": {"binary_data_size": len(cat) + 4}}
    assert np.array_equal(from_tensor, logits_of(infer(pixels_client, images(1, **framing), framed(cat))))
    assert np.abs(from_tensor - logits_of(infer(client, body, raw))).max() < 1e-4
    assert pixels_client.get("/v2/models/tiny").json() == client.get("/v2/models/tiny").json()


def test_values_that_no_pixel_has_become_the_nearest_pixels(
    pixels_client: TestClient, classifier: Classifier, cat: bytes
) -> None:
    row = tensor(cat, classifier)
    size = {"parameters": {"binary_data_size": row.nbytes}}

    def answer(values: Any) -> Any:
        return logits_of(infer(pixels_client, floats(1, 3, 224, 224, **size), values.astype("<f4").tobytes()))

    spec = classifier.preprocessing
    step = np.array(spec.std, np.float32)[:, None, None]
    assert np.array_equal(answer(row + 0.49 / 255 / step), answer(row))
    assert not np.array_equal(answer(row + 0.51 / 255 / step), answer(row))
    low, high = ((end - np.array(spec.mean, np.float32))[:, None, None] / step for end in (0, 1))
    for extreme, end in ((-3e38, low), (3e38, high)):
        assert np.array_equal(answer(np.full_like(row, extreme)), answer(np.zeros_like(row) + end))


def test_several_rows_come_back_in_their_order(client: TestClient, cat: bytes, coffee: bytes) -> None:
    raw = framed(cat, coffee, cat)
    body = images(3, parameters={"binary_data_size": len(raw)}) | {"id": "seven"}
    answer = infer(client, body, raw)
    assert answer.json()["id"] == "seven"
    found = logits_of(answer)
    assert found.shape == (3, 1000)
    assert np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("binary", [False, True])
def test_classification_names_the_same_classes_as_upload(
    client: TestClient, cat: bytes, coffee: bytes, binary: bool
) -> None:
    raw = framed(cat, coffee)
    outputs = [{"name": "logits", "parameters": {"classification": 3, "binary_data": binary}}]
    answer = infer(client, images(2, parameters={"binary_data_size": len(raw)}) | {"outputs": outputs}, raw)
    if binary:
        length = int(answer.headers[LENGTH])
        output, packed, entries = json.loads(answer.content[:length])["outputs"][0], answer.content[length:], []
        while packed:
            (size,) = struct.unpack_from("<I", packed)
            entries.append(packed[4 : 4 + size].decode())
            packed = packed[4 + size :]
    else:
        output = answer.json()["outputs"][0]
        entries = output["data"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 3])
    for picture, ranked in ((cat, entries[:3]), (coffee, entries[3:])):
        top = client.post("/upload?top_k=3", files={"file": ("x.jpg", picture)}).json()["top_k"]
        parts = [entry.split(":") for entry in ranked]
        assert [label for _, _, label in parts] == [entry["label"] for entry in top]
        ratio = math.exp(float(parts[0][0]) - float(parts[1][0]))
        assert ratio == pytest.approx(top[0]["probability"] / top[1]["probability"], rel=1e-4)


def test_an_invalid_image_gets_its_own_status_as_the_protocols_error(client: TestClient, cat: bytes) -> None:
    for picture, status, words in (
        (b"text", 415, "accepted format"),
        (cat[:5000], 422, "truncated or corrupt"),
        (b"", 400, "empty"),
    ):
        raw = framed(cat, picture)
        assert_error(infer(client, images(2, parameters={"binary_data_size": len(raw)}), raw), status, words)


def test_an_unknown_model_or_route_gets_the_protocols_error(client: TestClient) -> None:
    for path in ("/v2/models/other", "/v2/models/other/ready", "/v2/nothing", "/v2/models/a%2Fb"):
        assert_error(client.get(path), 404, "")
    assert_error(client.post("/v2/models/other/infer", json={}), 404, "There is no model 'other'; 'tiny' is served")
    assert_error(client.get(INFER), 405, "GET is not allowed here; allowed: POST")


def test_a_model_may_be_named_with_its_version(client: TestClient, cat: bytes) -> None:
    versions = "/v2/models/tiny/versions"
    assert client.get(f"{versions}/1").json() == client.get("/v2/models/tiny").json()
    assert client.get(f"{versions}/1/ready").json() == {"name": "tiny", "ready": True}
    body = images(1, data=[base64.b64encode(cat).decode()])
    assert client.post(f"{versions}/1/infer", json=body).json() == infer(client, body).json()
    for path in ("/2", "/01", "/2/ready", "/1/nothing", ""):
        assert_error(client.get(f"{versions}{path}"), 404, "")
    assert_error(client.post(f"{versions}/2/infer", json=body), 404, "There is no version '2' of 'tiny'; '1' is served")
    assert_error(client.get("/v2/models/other/versions/1"), 404, "There is no model 'other'; 'tiny' is served")
    assert_error(client.get(f"{versions}/1/infer"), 405, "GET is not allowed here; allowed: POST")


GOOD = 3 * 224 * 224
BAD: list[tuple[str, Any, str]] = [
    ("no inputs", {}, "'inputs' is not a list of one tensor"),
    ("inputs no list", {"inputs": {}}, "'inputs' is not a list of one tensor"),
    ("two inputs", {"inputs": [{}, {}]}, "'inputs' is not a list of one tensor"),
    ("no name", {"inputs": [{}]}, "There is no input null"),
    ("odd name", {"inputs": [{"name": "x" * 500}]}, "There is no input"),
    ("wrong datatype", {"inputs": [{"name": "input", "datatype": "FP64"}]}, "The datatype of 'input' is \"FP64\""),
    ("wrong datatype of image", {"inputs": [{"name": "image", "datatype": ["BYTES"]}]}, "The datatype of 'image' is"),
    ("no shape", {"inputs": [{"name": "input", "datatype": "FP32"}]}, "The shape of 'input' is null"),
    ("negative rows", floats(-1, 3, 224, 224), "The shape of 'input' is [-1, 3, 224, 224]"),
    ("no rows", floats(0, 3, 224, 224), "with N at least 1"),
    ("channels last", floats(1, 224, 224, 3), "The shape of 'input' is [1, 224, 224, 3]"),
    ("too few dimensions", floats(3, 224, 224), "The shape of 'input'"),
    ("true for one", {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [True]}]}, "The shape of 'image'"),
    ("a float for one", {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1.0]}]}, "The shape of 'image'"),
    ("negative images", images(-5, data=[]), "The shape of 'image' is [-5]"),
    ("no data", floats(1, 3, 224, 224), "is neither of shape"),
    ("too little data", floats(1, 3, 224, 224, data=[0.0] * 7), "is neither of shape"),
    ("ragged data", floats(1, 3, 224, 224, data=[[[[0.0] * 224] * 224, [[0.0] * 223] * 224] * 1]), "is neither of"),
    ("text for numbers", floats(1, 3, 224, 224, data=["1"] * GOOD), "contains something other than numbers"),
    ("true for numbers", floats(1, 3, 224, 224, data=[True] * GOOD), "contains something other than numbers"),
    ("nothing for numbers", floats(1, 3, 224, 224, data=[None] * GOOD), "contains something other than numbers"),
    ("too large a number", floats(1, 3, 224, 224, data=[1e39] * GOOD), "not finite FP32"),
    ("far too large a number", floats(1, 3, 224, 224, data=[10**400] + [0] * (GOOD - 1)), "not finite FP32"),
    ("not a number", floats(1, 3, 224, 224, data=[math.nan] * GOOD), "not finite FP32"),
    ("images no list", images(1, data="x"), "not a list of base64 strings"),
    ("images of numbers", images(1, data=[1]), "not a list of base64 strings"),
    ("no base64", images(1, data=["(picture)"]), "is not base64"),
    ("base64 beyond ASCII", images(1, data=["é"]), "is not base64"),
    ("fewer images than said", images(2, data=["AAAA"]), "The shape of 'image' is [2], but it has 1 elements"),
    ("size without bytes", images(1, parameters={"binary_data_size": 7}), "binary_data_size of 'image' is 7, but 0"),
    ("size no number", images(1, parameters={"binary_data_size": "0"}), "binary_data_size of 'image' is \"0\""),
    ("negative size", images(1, parameters={"binary_data_size": -1}), "binary_data_size of 'image' is -1"),
    ("both", images(1, parameters={"binary_data_size": 0}, data=[]), "both data and binary_data_size"),
    ("parameters no object", images(1, parameters=[1], data=[]), "parameters of 'image' are not a JSON object"),
    ("odd id", images(1, data=["AAAA"]) | {"id": 7}, "id is not a string"),
    ("long id", images(1, data=["AAAA"]) | {"id": "x" * 1025}, "at most 1024 characters"),
    ("unknown output", images(1, data=["AAAA"]) | {"outputs": [{"name": "probabilities"}]}, "There is no output"),
    (
        "one output twice",
        images(1, data=["AAAA"]) | {"outputs": [{"name": "logits"}] * 2},
        "'outputs' has \"logits\" more",
    ),
    (
        "outputs no list",
        images(1, data=["AAAA"]) | {"outputs": {"name": "logits"}},
        "'outputs' is not a list of tensors",
    ),
    ("output of no text", images(1, data=["AAAA"]) | {"outputs": [{"name": ["logits"]}]}, "There is no output"),
    (
        "classes of embeddings",
        images(1, data=["AAAA"]) | {"outputs": [{"name": "embedding", "parameters": {"classification": 3}}]},
        "classification=3 is only for 'logits'",
    ),
    (
        "too many classes",
        images(1, data=["AAAA"]) | {"outputs": [{"name": "logits", "parameters": {"classification": 1001}}]},
        "classification=1001 is not a whole number from 1 to 1000",
    ),
    (
        "odd flag",
        images(1, data=["AAAA"]) | {"outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]},
        "binary_data=1 is neither true nor false",
    ),
    ("odd flag of all", images(1, data=["AAAA"]) | {"parameters": {"binary_data_output": "no"}}, "neither true nor"),
]


@pytest.mark.parametrize(("body", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_malformed_request_gets_a_message_that_says_why(client: TestClient, body: dict[str, Any], words: str) -> None:
    answer = client.post(INFER, content=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    assert_error(answer, 400, words)
    assert len(answer.text) < 500


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 3_000, "not JSON"),
        (b'{"inputs": ' + b"[" * 3_000, "not JSON"),
        (b"[" * 100_000, "100000 lists and objects; the limit is 3704"),
        (b'{"a":' * 50_000, "50000 lists and objects"),
        (b"1" * 5000, "not JSON"),
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(client: TestClient, body: bytes, words: str) -> None:
    assert_error(client.post(INFER, content=body), 400, words)


@pytest.mark.parametrize("length", ["-1", "1e3", "999", "9" * 5000, "0x10", "", "٣", "1,1"])
def test_an_invalid_json_length_is_refused(client: TestClient, length: str) -> None:
    answer = client.post(INFER, content=b"{}", headers={LENGTH: length.encode()})  # type: ignore[arg-type]
    assert_error(answer, 400, LENGTH)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\0\0", "longer than the bytes that follow it"),
        (b"\xff\xff\xff\xff", "longer than the bytes that follow it"),
        (b"\x05\0\0\0abc", "longer than the bytes that follow it"),
        (b"\x01\0\0\0a" * 2, "The shape of 'image' is [1], but it has more elements"),
    ],
)
def test_truncated_binary_images_are_refused(client: TestClient, raw: bytes, words: str) -> None:
    assert_error(infer(client, images(1, parameters={"binary_data_size": len(raw)}), raw), 400, words)


def test_binary_floats_have_the_bytes_that_their_shape_takes(client: TestClient) -> None:
    for size in (4, 4 * GOOD - 1, 4 * GOOD + 4):
        body = floats(1, 3, 224, 224, parameters={"binary_data_size": size})
        assert_error(infer(client, body, bytes(size)), 400, f"takes {4 * GOOD} bytes, but its data has {size}")
    body = floats(1, 3, 224, 224, parameters={"binary_data_size": 4 * GOOD})
    assert_error(infer(client, body, bytes(4 * GOOD - 4)), 400, f"but {4 * GOOD - 4} bytes follow the JSON")
    assert_error(infer(client, body, b"\xff" * 4 * GOOD), 400, "not finite FP32")
    assert_error(infer(client, images(1, data=["AAAA"]), b"more"), 400, "4 bytes follow the JSON")


def test_values_with_non_finite_logits_are_refused(client: TestClient) -> None:
    raw = np.full(GOOD, 3e38, "<f4").tobytes()
    answer = infer(client, floats(1, 3, 224, 224, parameters={"binary_data_size": len(raw)}), raw)
    assert_error(answer, 400, "logits for these values are not finite")


@pytest.mark.parametrize("outputs", [{}, 0, "", False, "logits"])
def test_malformed_outputs_are_refused(client: TestClient, outputs: Any) -> None:
    assert_error(infer(client, images(1, data=["AAAA"]) | {"outputs": outputs}), 400, "'outputs' is not a list")


def test_no_more_elements_are_read_than_the_shape_has() -> None:
    signature = Signature("tiny", 224, (), 32)
    body = b"\0" * (20 * 2**20)
    head = json.dumps(images(1, parameters={"binary_data_size": len(body)})).encode()
    started = time.process_time()
    with pytest.raises(BadTensor, match="has more elements"):
        parse_request(str(len(head)), head + body, signature)
    assert time.process_time() - started < 0.5


def test_the_worst_json_takes_a_fraction_of_a_second() -> None:
    """Parsing holds the GIL, so the size of JSON and its lists are limited."""
    signature = Signature("tiny", 224, (), 32)
    numbers = b'{"a":[' + b"1," * 600_000 + b"1]}"
    lists = b"[" + b"[0]," * 3_500 + b"1," * 590_000 + b"0]"
    text = b'["' + b"\\u00e9" * 1_390_000 + b'"]'
    for body in (numbers, lists, text, numbers * 6, b"[" + b"{}," * 2_700_000 + b"0]"):
        started = time.process_time()
        with pytest.raises((BadTensor, UploadTooLarge)):
            parse_request(None, body, signature)
        assert time.process_time() - started < 0.4


def list_of(number: bytes) -> bytes:
    return b"[" + b",".join([number] * min(600_000, 8_000_000 // (len(number) + 1))) + b"]"


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' + list_of(b"9" * 4300) + b"}",
        b'{"a":' + list_of(b"1.23456e-300") + b"}",
        b'{"a":' + list_of(b"2.2250738585072011360574097967091319759348e-308") + b"}",
        b'{"inputs":[{"name":' + list_of(b"1.2345678e-05") + b"}]}",
    ],
    ids=["digits", "floats", "hard floats", "quoted in the error"],
)
def test_other_threads_run_while_the_worst_json_is_parsed(body: bytes) -> None:
    """Another thread never waits for the GIL for more than half of the parsing time."""
    shares = []
    for _ in range(3):
        reader = threading.Thread(target=parse_ignoring_errors, args=(body,))
        began = last = time.perf_counter()
        longest = 0.0
        reader.start()
        while reader.is_alive():
            time.sleep(0.0005)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
        shares.append(longest / (last - began))
    assert min(shares) < 0.5


def parse_ignoring_errors(body: bytes) -> None:
    with contextlib.suppress(BadTensor):
        parse_request(None, body, Signature("tiny", 224, (), 32))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"' + b"\xed\xa0\x80" * 2_700_000 + b'":1}', "not JSON"),
        (b"{" + b",".join(b'"%x":0' % number for number in range(600_000)) + b"}", "600000 keys"),
    ],
    ids=["surrogates", "names"],
)
def test_json_that_would_hold_the_gil_is_refused(body: bytes, words: str) -> None:
    taken = []
    for _ in range(3):
        began = time.process_time()
        with pytest.raises(BadTensor, match=words):
            parse_request(None, body, Signature("tiny", 224, (), 32))
        taken.append(time.process_time() - began)
    assert min(taken) < 0.1


def test_json_may_begin_with_a_byte_order_mark(client: TestClient, cat: bytes) -> None:
    body = json.dumps(images(1, data=[base64.b64encode(cat).decode()])).encode()
    assert client.post(INFER, content=b"\xef\xbb\xbf" + body).json() == client.post(INFER, content=body).json()


def test_no_request_starts_a_thread(client_for: ClientFor, cat: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once started, the application answers even if the system refuses new threads."""
    client = client_for()

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    png = (PICTURES / "rgb.png").read_bytes()
    for picture in (cat, png):
        assert client.post("/upload", files={"file": ("x", picture)}).status_code == 200
        assert infer(client, images(1, data=[base64.b64encode(picture).decode()])).status_code == 200
    assert client.post("/upload", files=[("file", ("x", cat)), ("file", ("y", png))]).status_code == 200
    assert client.get("/readyz").status_code == 200


def test_stages_are_sent_if_switched_on(client_for: ClientFor, cat: bytes) -> None:
    raw = framed(cat)
    body = images(1, parameters={"binary_data_size": len(raw)})
    assert "server-timing" not in infer(client_for(), body, raw).headers
    timed = client_for(server_timing=True)
    assert "infer;dur=" in infer(timed, body, raw).headers["server-timing"]
    raw = framed(cat[:5000])
    refused = infer(timed, images(1, parameters={"binary_data_size": len(raw)}), raw)
    assert refused.status_code == 422
    assert "queue;dur=" in refused.headers["server-timing"]


def test_limits_are_those_of_upload(client_for: ClientFor, cat: bytes) -> None:
    client = client_for(max_files=2, max_request_bytes=100_000)
    raw = framed(b"x", b"x", b"x")
    assert_error(infer(client, images(3, parameters={"binary_data_size": len(raw)}), raw), 413, "limit is 2 rows")
    assert_error(infer(client, images(10**12, data=[])), 413, "limit is 2 rows")
    assert_error(client.post(INFER, content=b" " * 100_001), 413, "limit of 100000 bytes")
    answer = client.post(INFER, content=cat, headers={"X-Request-Timeout-Ms": "none"})
    assert_error(answer, 400, "X-Request-Timeout-Ms")


def test_much_json_and_compressed_bodies_are_refused(client: TestClient) -> None:
    assert_error(client.post(INFER, content=b" " * (8 * 2**20 + 1)), 413, "the limit is 8388608 bytes")
    assert_error(client.post(INFER, content=b"x", headers={"Content-Encoding": "gzip"}), 415, "compressed")


def test_null_and_empty_fields_are_accepted(client: TestClient, cat: bytes) -> None:
    tensor = images(1, data=[base64.b64encode(cat).decode()], parameters=None)
    body = tensor | {"id": None, "parameters": None, "outputs": [{"name": "logits", "parameters": None}]}
    answer = client.post(INFER, json=body, headers={"Content-Encoding": "Identity"})
    assert logits_of(answer).shape == (1, 1000)


def test_images_other_than_jpegs_are_accepted(client: TestClient) -> None:
    png = (PICTURES / "rgb.png").read_bytes()
    raw = framed(png)
    assert logits_of(infer(client, images(1, parameters={"binary_data_size": len(raw)}), raw)).shape == (1, 1000)
