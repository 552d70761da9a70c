"""Tests of what is told about the inside of the network over HTTP: `/explain` and embeddings."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from serve.config.settings import Config
from serve.imaging.overlay import color_table
from serve.model.classifier import Classifier, load_classifier
from serve.model.look import Look
from serve.model.stages import Normalised, Opened
from tests.serve.conftest import ClientFor
from tests.server_process import running_server
from tests.tiny_model import PATH as TINY_MODEL

JPEG = {"Content-Type": "image/jpeg"}
JSON = {**JPEG, "Accept": "application/json"}
INFER = "/v2/models/tiny/infer"
ORIENTATION = 0x0112
LAST = color_table()[-1].astype(int)


def explain(client: TestClient, data: bytes, query: str = "") -> Any:
    """The explanation of an image in JSON."""
    answer = client.post(f"/explain{query}", content=data, headers=JSON)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    return answer.json()


def drawn(client: TestClient, data: bytes, query: str = "") -> np.ndarray:
    """The picture that explains an image, RGB `[height, width, 3]`."""
    answer = client.post(f"/explain{query}", content=data, headers=JPEG)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png"), answer.text
    with Image.open(io.BytesIO(answer.content)) as image:
        image.load()
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image).astype(int)


def problem(answer: httpx2.Response) -> tuple[int, str, str]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    told = answer.json()
    return answer.status_code, told["reason"], told["detail"]


def bright_quadrant(size: tuple[int, int], orientation: int = 1) -> bytes:
    """A black picture whose top right quarter is white once it is upright; `size` is that of the upright one."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[: size[1] // 2, size[0] // 2 :] = 255
    image = Image.fromarray(pixels)
    stored = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    if (turn := stored[orientation]) is not None:
        image = image.transpose(turn)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif.tobytes())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def brightest(classifier: Classifier) -> int:
    """The class whose logit grows most with brightness."""
    features = classifier.model.features
    assert features
    return int(features.weights.sum(1).argmax())


def test_curl_gets_a_picture_without_further_ado(cat: bytes, client: TestClient) -> None:
    answer = client.post("/explain", files={"file": ("cat.jpg", cat)})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (448, 298)  # of 451 × 300
    assert answer.headers["Vary"] == "Accept"


@pytest.mark.parametrize("body", [{"files": {"image": ("a.jpg", b"")}}, {"files": {"file": ("a", b"")}}, {}])
def test_every_body_of_uploads_is_taken(body: dict[str, Any], cat: bytes, client: TestClient) -> None:
    if body:
        ((field, (name, _)),) = body["files"].items()
        answer = client.post("/explain", files={field: (name, cat)})
    else:
        answer = client.post("/explain", content=cat)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("model", ["tiny.onnx", "tiny_pixels.onnx"])
def test_the_map_and_the_bias_add_up_to_the_logit_of_every_class(model: str, cat: bytes) -> None:
    classifier = load_classifier(Config(model=str(TINY_MODEL.with_name(model))))
    for index in (0, 500, 999):
        classified = classifier.classify(cat, 1, look=Look(explain=True, index=index))
        explanation = classified.explanation
        assert explanation
        assert explanation.logit == classified.logits[index]
        assert abs(explanation.places.mean() + explanation.bias - explanation.logit) < 1e-3
    classifier.close()


def test_numbers_explain_the_class_that_uploads_name(cat: bytes, client: TestClient) -> None:
    best = client.post("/upload", content=cat, headers=JPEG).json()
    told = explain(client, cat)
    assert list(told) == ["index", "label", "map", "mean", "bias", "logit", "crop"]
    assert (told["index"], told["label"]) == (best["top_k"][0]["index"], best["label"])
    assert np.shape(told["map"]) == (7, 7)
    assert np.mean(told["map"]) == pytest.approx(told["mean"], abs=1e-6)
    assert told["mean"] + told["bias"] == pytest.approx(told["logit"], abs=1e-3)
    assert told["crop"] == {"left": 93.96, "top": 18.75, "right": 357.04, "bottom": 281.25}
    rows_of_numbers = [
        key for key, value in told.items() if isinstance(value, list) and all(isinstance(each, list) for each in value)
    ]
    assert rows_of_numbers == ["map"]


@pytest.mark.parametrize("name", ["285", "n02124075", "Egyptian_cat"])
def test_a_class_is_named_by_its_index_its_id_or_its_label(name: str, cat: bytes, client: TestClient) -> None:
    told = explain(client, cat, f"?class={name}")
    assert (told["index"], told["label"]) == (285, "Egyptian_cat")
    assert (drawn(client, cat, f"?class={name}") == drawn(client, cat, "?class=285")).all()


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("class=1000", "class='1000' is not an index from 0 to 999."),
        ("class=99999999999999999999", "is not an index from 0 to 999."),
        ("class=-1", "class='-1' is no class of this model"),
        ("class=", "class='' is no class of this model"),
        ("class=unicorn", "class='unicorn' is no class of this model: neither an index from 0 to 999 nor an id or"),
        ("class=crane", "class='crane' is the label of several classes; give the index, one of 134, 517."),
        ("class=1&class=2", "class='1,2' is no class of this model"),
        ("size=63", "size='63' is not one whole number of pixels from 64 to 1024."),
        ("size=1025", "size='1025' is not one"),
        ("size=big", "size='big' is not one"),
        ("opacity=1.1", "opacity='1.1' is not one number from 0 to 1, such as 0.2."),
        ("opacity=half", "opacity='half' is not one number"),
        ("top_k=3", "There is no query parameter 'top_k'"),
        ("clas=3", "the nearest is 'class'. Known are class, size, opacity."),
    ],
)
@pytest.mark.parametrize("headers", [JPEG, JSON])
def test_a_value_that_is_not_allowed_is_named(
    query: str, words: str, headers: dict[str, str], cat: bytes, client: TestClient
) -> None:
    status, reason, detail = problem(client.post(f"/explain?{query}", content=cat, headers=headers))
    assert (status, reason) == (400, "bad_parameter")
    assert words in detail


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("image/png, application/json", "image/png"),
        ("text/html", "image/png"),
        ("application/json", "application/json"),
        ("application/*", "application/json"),
        ("application/json, image/png;q=0.5", "application/json"),
        ("application/json;q=0.2, */*;q=0.1", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("application/json;q=0., image/png;q=0.1", "image/png"),
        ("application/json;q=1.5, image/png", "image/png"),
    ],
)
def test_the_client_chooses_between_picture_and_numbers(
    accept: str, media_type: str, cat: bytes, client: TestClient
) -> None:
    answer = client.post("/explain", content=cat, headers={**JPEG, "Accept": accept})
    assert answer.headers["Content-Type"] == media_type
    assert answer.headers["Vary"] == "Accept"


def test_several_headers_count_as_one(cat: bytes, client: TestClient) -> None:
    headers = [("Content-Type", "image/jpeg"), ("Accept", "image/png;q=0.1"), ("Accept", "application/json")]
    answer = client.post("/explain", content=cat, headers=headers)
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(("size", "width", "height"), [(64, 64, 43), (448, 448, 298), (1024, 1024, 681)])
def test_size_is_the_longer_side(size: int, width: int, height: int, cat: bytes, client: TestClient) -> None:
    assert drawn(client, cat, f"?size={size}").shape == (height, width, 3)


def test_a_tiny_image_is_enlarged(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 2), (10, 200, 30)).save(buffer, "PNG")
    assert drawn(client, buffer.getvalue(), "?opacity=0").shape == (448, 224, 3)
    assert explain(client, buffer.getvalue())["crop"] == {"left": 0.06, "top": 0.56, "right": 0.94, "bottom": 1.44}


def test_opacity_goes_from_the_image_to_the_map(cat: bytes, client: TestClient) -> None:
    image, half, full = (drawn(client, cat, f"?opacity={opacity}") for opacity in (0, 0.5, 1))
    inside = full[150, 230]
    assert np.abs(half[150, 230] - (image[150, 230] + inside) / 2).max() <= 1
    colors = {tuple(color) for color in color_table().tolist()}
    assert {tuple(color) for color in full[30:270, 100:350].reshape(-1, 3).tolist()} <= colors
    np.testing.assert_array_equal(image[:, :80], full[:, :80])  # beside the crop


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("size", [(600, 400), (400, 600), (2000, 1500), (40, 30)])
def test_the_map_lies_where_the_image_is_bright_once_it_is_upright(
    size: tuple[int, int], orientation: int, brightest: int, client: TestClient
) -> None:
    data = bright_quadrant(size, orientation)
    places = np.array(explain(client, data, f"?class={brightest}")["map"])
    assert places[:3, 4:].min() > places[:3, :3].max()
    assert places[:3, 4:].min() > places[4:].max()
    full = drawn(client, data, f"?class={brightest}&opacity=1&size=400")
    height, width = full.shape[:2]
    assert (width, height) == ((400, round(400 * size[1] / size[0])) if size[0] > size[1] else (267, 400))
    distance = np.abs(full - LAST).sum(2)
    assert distance[height // 3, width * 2 // 3] < 30
    assert distance[height // 3, width // 3] > 200
    assert distance[height * 2 // 3, width // 3 : width * 2 // 3].min() > 200


def test_two_images_are_too_many(cat: bytes, client: TestClient) -> None:
    answer = client.post("/explain", files=[("file", ("a.jpg", cat)), ("file", ("b.jpg", cat))])
    assert problem(answer) == (413, "too_many_files", "The request has more files than the limit of 1.")


def test_an_image_that_cannot_be_decoded_is_a_problem(cat: bytes, client: TestClient) -> None:
    assert problem(client.post("/explain", content=cat[:3000], headers=JPEG))[:2] == (422, "undecodable_image")
    assert problem(client.post("/explain", files={"file": ("a.txt", b"hello")}))[:2] == (415, "unsupported_format")
    assert problem(client.post("/explain", content=b"", headers=JPEG))[:2] == (400, "empty_file")


def test_keys_deadlines_and_limits_are_those_of_uploads(cat: bytes, client_for: ClientFor, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key\n")
    client = client_for(api_keys_file=keys, max_request_bytes=10_000, request_timeout_ms=60_000)
    assert problem(client.post("/explain", content=cat, headers=JPEG))[0] == 401
    guarded = {**JPEG, "X-API-Key": "key"}
    assert problem(client.post("/explain", content=cat, headers=guarded))[:2] == (413, "upload_too_large")
    answer = client_for().post("/explain", content=cat, headers={**JPEG, "X-Request-Timeout-Ms": "1"})
    assert problem(answer)[:2] == (504, "deadline_passed")
    assert problem(client_for(max_pixels=70_000).post("/explain", content=cat, headers=JPEG))[0] == 413


def test_log_metrics_and_timing_tell_about_it(cat: bytes, client_for: ClientFor) -> None:
    client = client_for(server_timing=True)
    answer = client.post("/explain", content=cat, headers=JPEG)
    assert "look;dur=" in answer.headers["Server-Timing"]
    metrics = client.get("/metrics").text
    assert 'serve_requests_total{code="200",route="/explain"} 1.0' in metrics
    assert 'serve_stage_duration_seconds_count{stage="look"} 1.0' in metrics
    upload = client.post("/upload", content=cat, headers=JPEG)
    assert "look" not in upload.headers["Server-Timing"]


def test_a_model_without_feature_maps_says_so(featureless: Path, cat: bytes) -> None:
    with running_server(sys.executable, "--model", str(featureless)) as server:
        for path in ("/explain", "/upload?embedding=true"):
            answer = httpx2.post(f"{server.url}{path}", content=cat, headers=JPEG)
            status, reason, detail = problem(answer)
            assert (status, reason) == (422, "no_feature_maps")
            assert detail.startswith("The file of the model constant names no feature maps")
        assert httpx2.post(f"{server.url}/upload", content=cat, headers=JPEG).status_code == 200
        assert httpx2.get(f"{server.url}/model").json()["embedding"] is None
        model = httpx2.get(f"{server.url}/v2/models/constant").json()
        assert [output["name"] for output in model["outputs"]] == ["logits"]
        body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": []}]}
        wanted = {**body, "outputs": [{"name": "embedding"}]}
        answer = httpx2.post(f"{server.url}/v2/models/constant/infer", json=wanted)
        assert answer.status_code == 400


def test_the_card_has_the_length_of_an_embedding(client: TestClient) -> None:
    assert client.get("/model").json()["embedding"] == {"length": 3}


def test_the_card_does_not_believe_the_file_about_the_length(classifier: Classifier) -> None:
    said = {**classifier.model.card, "embedding": {"length": 512, "norm": 2.5}}
    other = replace(classifier, model=replace(classifier.model, card=said))
    assert other.card(False)["embedding"] == {"length": 3, "norm": 2.5}


def embedding_of(classifier: Classifier, data: bytes) -> np.ndarray:
    embedding = classifier.classify(data, 1, look=Look(embedding=True)).embedding
    assert embedding is not None
    return embedding


def test_an_upload_gets_its_embedding_where_it_asks_for_it(
    cat: bytes, client: TestClient, classifier: Classifier
) -> None:
    plain = client.post("/upload", content=cat, headers=JPEG).json()
    answer = client.post("/upload?embedding=true", content=cat, headers=JPEG).json()
    embedding = answer.pop("embedding")
    assert answer == plain
    assert np.array(embedding, np.float32).tolist() == embedding_of(classifier, cat).tolist()  # bit for bit
    assert client.post("/upload?embedding=false", content=cat, headers=JPEG).json() == plain


def test_each_of_several_images_gets_its_embedding(
    cat: bytes, coffee: bytes, client: TestClient, classifier: Classifier
) -> None:
    files = [("file", ("a.jpg", cat)), ("file", ("b.txt", b"hello")), ("file", ("c.jpg", coffee))]
    first, second, third = client.post("/upload?embedding=true&top_k=1", files=files).json()["results"]
    assert second["status"] == 415
    for result, data in ((first, cat), (third, coffee)):
        np.testing.assert_array_equal(np.array(result["embedding"], np.float32), embedding_of(classifier, data))


def test_embeddings_count_for_the_length_of_an_answer(cat: bytes, client_for: ClientFor) -> None:
    client = client_for(max_files=200, max_queue=200)
    files = [("file", ("a.jpg", cat[:50]))] * 100
    assert client.post("/upload?top_k=1000", files=files).status_code == 200
    status, reason, detail = problem(client.post("/upload?top_k=1000&embedding=true", files=files))
    assert (status, reason) == (400, "bad_parameter")
    assert "100000 classes and 300 numbers of embeddings, which count as an eighth of a class, in one" in detail


def test_a_batch_of_different_wishes_gives_each_its_own(cat: bytes, coffee: bytes, classifier: Classifier) -> None:
    jobs: list[Opened | Normalised] = [
        classifier.open(cat, 3),
        classifier.open(coffee, 2, Look(embedding=True)),
        classifier.open(cat, 1, Look(explain=True, index=7, view=100)),
        Normalised(np.zeros((1, 3, 224, 224), np.float32), look=Look(embedding=True)),
    ]
    prepared = [classifier.prepare(job) for job in jobs]
    plain, embedded, explained, normalised = classifier.compute_batch(prepared)
    for each, alone in zip((plain, embedded, explained, normalised), map(classifier.compute, prepared), strict=True):
        np.testing.assert_allclose(each.logits, alone.logits, atol=1e-5)
    assert (plain.embedding, plain.explanation, len(plain.scored)) == (None, None, 3)
    assert embedded.embedding is not None
    assert embedded.explanation is None
    assert explained.embedding is None
    assert explained.explanation is not None
    assert (explained.explanation.index, explained.explanation.png[:4]) == (7, b"\x89PNG")
    assert normalised.embedding is not None


def test_the_protocol_has_embeddings_as_an_output(cat: bytes, client: TestClient, classifier: Classifier) -> None:
    size = {"parameters": {"binary_data_size": len(cat) + 4}}
    message = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], **size}]}

    def infer(outputs: list[dict[str, Any]]) -> httpx2.Response:
        head = json.dumps({**message, "outputs": outputs}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return client.post(INFER, content=head + len(cat).to_bytes(4, "little") + cat, headers=headers)

    expected = embedding_of(classifier, cat)
    (only,) = infer([{"name": "embedding"}]).json()["outputs"]
    assert (only["name"], only["datatype"], only["shape"]) == ("embedding", "FP32", [1, 3])
    np.testing.assert_array_equal(np.array(only["data"], np.float32), expected)

    ranked, embedding = infer([{"name": "logits", "parameters": {"classification": 2}}, {"name": "embedding"}]).json()[
        "outputs"
    ]
    assert (ranked["name"], ranked["shape"], len(ranked["data"])) == ("logits", [1, 2], 2)
    assert embedding == only

    binary = {"parameters": {"binary_data": True}}
    answer = infer([{"name": "embedding", **binary}, {"name": "logits", **binary}])
    length = int(answer.headers["Inference-Header-Content-Length"])
    sizes = [output["parameters"]["binary_data_size"] for output in json.loads(answer.content[:length])["outputs"]]
    assert sizes == [12, 4000]
    np.testing.assert_array_equal(np.frombuffer(answer.content[length : length + 12], "<f4"), expected)

    mixed = infer([{"name": "embedding"}, {"name": "logits", **binary}])
    length = int(mixed.headers["Inference-Header-Content-Length"])
    first, second = json.loads(mixed.content[:length])["outputs"]
    assert first == only
    assert second["parameters"]["binary_data_size"] == len(mixed.content) - length == 4000
