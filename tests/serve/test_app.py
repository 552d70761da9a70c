"""Tests the HTTP contract on the application in this process: results, problems and admission."""

import asyncio
import io
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from starlette.testclient import TestClient

from serve import errors
from serve.api.app import create_app
from serve.config.settings import Config
from serve.model.classifier import Classifier
from serve.problems import RULES, retry_after
from serve.scheduling.scheduler import Scheduler
from serve.scheduling.wakeups import Wakeups
from tests.references import PICTURES

ClientFor = Callable[..., TestClient]
JPEG = "image/jpeg"


def post_file(client: TestClient, picture: bytes, name: str = "cat.jpg", **options: Any) -> httpx2.Response:
    return client.post("/upload", files={"file": (name, picture, JPEG)}, **options)


def assert_problem(answer: httpx2.Response, status: int, *words: str) -> dict[str, Any]:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert set(problem) >= {"type", "title", "status", "detail", "reason"}
    assert problem["status"] == status
    for word in words:
        assert word in problem["detail"]
    assert not re.search(r"Traceback|Errno|PIL|onnxruntime|/site-packages|\.py", answer.text)
    return problem


def test_the_root_answers_that_the_server_is_running(client: TestClient) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.text) == (200, "Server is Running\n")
    assert answer.headers["content-type"].startswith("text/plain")


def test_one_file_gets_one_prediction(client: TestClient, cat: bytes) -> None:
    answer = post_file(client, cat)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    prediction = answer.json()
    assert list(prediction) == ["imagenet_id", "label", "probability", "top_k", "model"]
    assert prediction["model"] == "tiny"
    best = prediction["top_k"][0]
    assert list(best) == ["index", "imagenet_id", "label", "probability"]
    assert {key: prediction[key] for key in ("imagenet_id", "label", "probability")}.items() < best.items()
    assert len(prediction["top_k"]) == 5
    probabilities = [entry["probability"] for entry in prediction["top_k"]]
    assert probabilities == sorted(probabilities, reverse=True)


def test_all_three_ways_of_sending_give_the_same_answer(client: TestClient, cat: bytes) -> None:
    form = post_file(client, cat).json()
    for media_type in (JPEG, "image/png", "application/octet-stream", "IMAGE/JPEG; charset=binary"):
        assert client.post("/upload", content=cat, headers={"Content-Type": media_type}).json() == form
    both = client.post("/upload", files=[("file", ("a.jpg", cat)), ("file", ("b.jpg", cat))]).json()
    assert both == {"results": [{"filename": "a.jpg", **form}, {"filename": "b.jpg", **form}]}


def test_a_chunked_body_is_read_too(client: TestClient, cat: bytes) -> None:
    def chunks() -> Iterator[bytes]:
        yield cat[:1000]
        yield cat[1000:]

    answer = client.post("/upload", content=chunks(), headers={"Content-Type": JPEG, "Transfer-Encoding": "chunked"})
    assert answer.json() == post_file(client, cat).json()


def test_top_k_has_the_requested_number_of_classes_and_all_sum_to_one(client: TestClient, cat: bytes) -> None:
    assert len(post_file(client, cat, params={"top_k": 1}).json()["top_k"]) == 1
    everything = post_file(client, cat, params={"top_k": 1000}).json()["top_k"]
    assert {entry["index"] for entry in everything} == set(range(1000))
    assert len({entry["imagenet_id"] for entry in everything}) == 1000
    assert sum(entry["probability"] for entry in everything) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("value", ["0", "1001", "-1", "1.5", "many", "", " 5", "٣", "1" * 500])
def test_a_top_k_that_is_not_allowed_is_named(client: TestClient, cat: bytes, value: str) -> None:
    assert_problem(post_file(client, cat, params={"top_k": value}), 400, "top_k=", "from 1 to 1000")


def test_a_repeated_top_k_is_refused(client: TestClient, cat: bytes) -> None:
    assert_problem(post_file(client, cat, params=[("top_k", "1"), ("top_k", "2")]), 400, "top_k='1,2'")


def test_a_bad_file_in_a_list_does_not_affect_the_others(client: TestClient, cat: bytes, coffee: bytes) -> None:
    files = [
        ("file", ("cat.jpg", cat)),
        ("file", ("notes.txt", b"hello")),
        ("file", ("half.jpg", cat[:5000])),
        ("file", ("empty.jpg", b"")),
        ("file", ("coffee.jpg", coffee)),
    ]
    results = client.post("/upload", files=files).json()["results"]
    assert [result["filename"] for result in results] == [name for _, (name, _) in files]
    assert [result.get("status", 200) for result in results] == [200, 415, 422, 400, 200]
    assert results[0] == {"filename": "cat.jpg", **post_file(client, cat).json()}
    assert results[4] == {"filename": "coffee.jpg", **post_file(client, coffee).json()}


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"", 400, ["empty"]),
        (b"plain text", 415, ["JPEG, PNG"]),
        (b"\xff\xd8\xff\xe0" + b"\0" * 100, 422, ["JPEG", "truncated or corrupt"]),
    ],
)
def test_a_file_that_cannot_be_classified_is_a_problem(
    client: TestClient, data: bytes, status: int, words: list[str]
) -> None:
    assert_problem(post_file(client, data), status, *words)


def test_messages_name_the_configured_limits(client_for: ClientFor, cat: bytes) -> None:
    assert_problem(post_file(client_for(max_pixels=100_000), cat), 413, "451 × 300", "100000 pixels")
    assert_problem(post_file(client_for(max_request_bytes=10_000), cat), 413, "10000 bytes")
    files = [("file", (f"{number}.jpg", cat)) for number in range(3)]
    assert_problem(client_for(max_files=2).post("/upload", files=files), 413, "limit of 2")


def test_a_body_without_a_length_gets_411(client: TestClient) -> None:
    request = client.build_request("POST", "/upload", headers={"Content-Type": JPEG})
    del request.headers["content-length"]
    assert_problem(client.send(request), 411, "Content-Length")


@pytest.mark.parametrize(
    ("media_type", "body", "status", "words"),
    [
        ("application/x-www-form-urlencoded", b"file=cat", 415, ["x-www-form-urlencoded", "curl -F"]),
        ("application/json", b"{}", 415, ["application/json"]),
        ("", b"x", 415, ["no Content-Type"]),
        ("multipart/form-data", b"x", 400, ["boundary"]),
        ("multipart/form-data; boundary=x", b"rubbish", 400, ["malformed"]),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n",
            400,
            ["no name"],
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nhalf',
            400,
            ["closing boundary"],
        ),
        (
            "multipart/form-data; boundary=" + "x" * 500,
            b"x",
            400,
            ["boundary", "has 500 bytes; the limit is 256 bytes"],
        ),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\n" + b"A: b\r\n" * 9 + b"\r\na\r\n--x--\r\n",
            400,
            ["more headers than the limit of 8"],
        ),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nA: " + b"b" * 5000 + b"\r\n\r\na\r\n--x--\r\n",
            400,
            ["longer than the limit of 4224 bytes"],
        ),
        (JPEG, b"", 400, ["empty"]),
    ],
)
def test_a_body_that_is_not_an_upload_is_a_problem(
    client: TestClient, media_type: str, body: bytes, status: int, words: list[str]
) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    assert_problem(client.post("/upload", content=body, headers=headers), status, *words)


def test_a_form_without_a_file_lists_its_parts(client: TestClient) -> None:
    answer = client.post("/upload", files={"image": (None, b"cat"), "note": (None, b"hi")})
    assert_problem(answer, 400, "'file'", "'image', 'note'", "With curl: -F 'file=@cat.jpg'")


def test_a_file_name_instead_of_a_file_gets_its_own_message(client: TestClient) -> None:
    answer = client.post("/upload", files={"file": (None, b"dog.jpg")})
    assert_problem(answer, 400, "the text 'dog.jpg', not a file", "-F 'file=@dog.jpg'")


def test_other_fields_beside_the_file_are_ignored_up_to_a_limit(client: TestClient, cat: bytes) -> None:
    assert post_file(client, cat, data={"note": "hi"}).status_code == 200
    many = {f"field{number}": "x" for number in range(33)}
    assert_problem(post_file(client, cat, data=many), 413, "more than 32 parts")


def test_filenames_come_back_as_they_were_sent(client: TestClient, cat: bytes) -> None:
    names = ["chat 猫.jpg", "", 'quo"te.jpg', "../../etc/passwd"]
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="'
        + name.replace('"', '\\"').encode()
        + b'"\r\n\r\n'
        + cat
        + b"\r\n"
        for name in names
    )
    answer = client.post(
        "/upload", content=body + b"--x--\r\n", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert [result["filename"] for result in answer.json()["results"]] == names


@pytest.mark.parametrize("path", sorted(PICTURES.iterdir()), ids=lambda path: path.name)
def test_every_format_of_the_contract_is_classified(client: TestClient, path: Any) -> None:
    assert post_file(client, path.read_bytes(), "no-extension").status_code == 200


def test_unknown_routes_and_methods_are_problems(client: TestClient) -> None:
    assert_problem(client.get("/nothing"), 404, "no such route")
    assert_problem(client.get("/upload/"), 404)
    wrong = client.get("/upload")
    assert_problem(wrong, 405, "GET", "POST")
    assert wrong.headers["allow"] == "POST"
    assert_problem(client.delete("/"), 405, "DELETE")


def test_the_model_card_is_the_files_metadata(client: TestClient, classifier: Classifier) -> None:
    card = client.get("/model").json()
    assert card["name"] == "tiny"
    assert re.fullmatch("[0-9a-f]{64}", card["sha256"])
    ours = {"activation": "softmax", "temperature": 1, "embedding": {"length": 3}}
    assert card == {**classifier.model.card, **ours}


def test_probes_tell_alive_from_ready(config: Config, classifier: Classifier, cat: bytes) -> None:
    unstarted = TestClient(create_app(config, classifier))
    assert unstarted.get("/livez").status_code == 200
    for answer in (
        unstarted.get("/readyz"),
        unstarted.get("/healthz"),
        unstarted.get("/model"),
        post_file(unstarted, cat),
    ):
        assert_problem(answer, 503, "not ready")
        assert answer.headers["retry-after"] == "1"
    with TestClient(create_app(config, classifier)) as started:
        assert [started.get(path).status_code for path in ("/livez", "/readyz", "/healthz")] == [200, 200, 200]


def test_every_answer_carries_a_request_id(client: TestClient) -> None:
    assert client.get("/", headers={"X-Request-ID": "abc-123"}).headers["x-request-id"] == "abc-123"
    assert client.get("/nothing", headers={"X-Request-ID": "abc-123"}).headers["x-request-id"] == "abc-123"
    made = [client.get("/").headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)
    assert made[0] != made[1]
    for insane in ("x" * 200, "a b", 'a"b', ""):
        assert client.get("/", headers={"X-Request-ID": insane}).headers["x-request-id"] != insane


def test_pages_of_other_origins_are_refused_unless_listed(client_for: ClientFor, cat: bytes) -> None:
    client = client_for()
    for origin in (
        "https://elsewhere.example",
        "null",
        "http://[",
        "testserver",
        "http://",
        "http://testserver.evil.example",
    ):
        assert_problem(post_file(client, cat, headers={"Origin": origin}), 403, origin)
    assert post_file(client, cat, headers={"Origin": "http://testserver"}).status_code == 200
    listing = client_for(cors_origins=("https://elsewhere.example",))
    allowed = post_file(listing, cat, headers={"Origin": "https://elsewhere.example"})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://elsewhere.example"
    asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    assert listing.options("/upload", headers=asked).status_code == 200
    assert_problem(listing.delete("/upload", headers={"Origin": "https://elsewhere.example"}), 405)
    assert_problem(listing.options("/upload", headers={**asked, "Origin": "https://other.example"}), 403)


def test_preflights_of_listed_origins_may_come_from_a_public_network(client_for: ClientFor) -> None:
    client = client_for(cors_origins=("https://elsewhere.example",))
    asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    answer = client.options("/upload", headers={**asked, "Access-Control-Request-Private-Network": "true"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert answer.headers["access-control-allow-origin"] == "https://elsewhere.example"


def test_a_refused_preflight_gets_a_problem(client_for: ClientFor) -> None:
    client = client_for(cors_origins=("https://elsewhere.example",))
    asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "FETCH"}
    answer = client.options("/upload", headers=asked)
    assert_problem(answer, 400, "The CORS preflight was refused; not allowed: method.")
    assert answer.headers["access-control-allow-origin"] == "https://elsewhere.example"
    assert "Access-Control-Request-Method" in answer.headers["vary"]
    assert client.options("/v2", headers=asked).json() == {
        "error": "The CORS preflight was refused; not allowed: method."
    }


def test_a_defect_is_a_500_that_carries_its_request_id_and_nothing_else(
    client_for: ClientFor, cat: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret detail in /some/path")

    monkeypatch.setattr(Classifier, "compute", fail)
    answer = post_file(client_for(), cat)
    problem = assert_problem(answer, 500, "request id")
    assert "secret" not in answer.text
    assert problem["request_id"] == answer.headers["x-request-id"]
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert logged[0].fields == {"request_id": problem["request_id"]}  # type: ignore[attr-defined]
    assert "secret detail" in str(logged[0].exc_info)


@pytest.mark.parametrize("step", ["prepare", "compute"])
def test_neither_decoding_nor_inference_blocks_the_event_loop(
    step: str, client_for: ClientFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another request is answered meanwhile, which would be impossible if the step ran on the event loop."""
    picture = (PICTURES / "rgba.png").read_bytes()
    computing, may_finish = threading.Event(), threading.Event()
    original = getattr(Classifier, step)

    def slowly(self: Classifier, *arguments: Any) -> Any:
        computing.set()
        assert may_finish.wait(10)
        return original(self, *arguments)

    monkeypatch.setattr(Classifier, step, slowly)
    client = client_for()
    with ThreadPoolExecutor(1) as pool:
        upload = pool.submit(post_file, client, picture)
        assert computing.wait(10)
        assert client.get("/livez").status_code == 200
        assert not upload.done()
        may_finish.set()
        assert upload.result(10).status_code == 200


@pytest.mark.parametrize(("seconds", "told"), [(0.01, 1), (2.2, 3), (29.5, 30), (500.0, 30)])
def test_retry_after_is_whole_seconds_from_1_to_30(seconds: float, told: int) -> None:
    assert retry_after(errors.QueueFull("full", retry_after=seconds)) == told
    assert retry_after(errors.NotReady("not ready")) == 1
    assert retry_after(errors.EmptyFile("empty")) is None


def test_the_table_has_a_row_for_every_request_error() -> None:
    assert set(RULES) == set(errors.RequestError.__subclasses__())


def test_each_request_is_one_line_in_the_access_log(
    client: TestClient, cat: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serve.access")
    answer = client.post("/upload", content=cat, headers={"Content-Type": JPEG, "X-Request-ID": "abc"})
    fields: dict[str, Any] = caplog.records[-1].fields  # type: ignore[attr-defined]
    assert fields["request_id"] == "abc"
    assert (fields["method"], fields["path"], fields["status"]) == ("POST", "/upload", 200)
    assert fields["bytes_in"] == len(cat)
    assert fields["bytes_out"] == len(answer.content)
    assert fields["ms"] > 0
    json.dumps(fields)


def test_server_timing_is_sent_if_switched_on(client_for: ClientFor, cat: bytes) -> None:
    assert "server-timing" not in post_file(client_for(), cat).headers
    timed = client_for(server_timing=True)
    stages = dict(re.findall(r"(\w+);dur=([0-9.]+)", post_file(timed, cat).headers["server-timing"]))
    assert list(stages) == ["read", "decode", "preprocess", "queue", "infer"]
    assert float(stages["decode"]) > 0
    several = timed.post("/upload", files=[("file", ("a.jpg", cat)), ("file", ("b.jpg", b"no picture"))])
    assert "infer;dur=" in several.headers["server-timing"]


@pytest.mark.parametrize(("length", "status"), [(None, 200), (5000, 422)])
def test_the_stages_in_the_log_equal_those_in_server_timing(
    client_for: ClientFor, cat: bytes, caplog: pytest.LogCaptureFixture, length: int | None, status: int
) -> None:
    caplog.set_level(logging.INFO, "serve.access")
    answer = post_file(client_for(server_timing=True), cat[:length])
    assert answer.status_code == status
    told = re.findall(r"(\w+);dur=([0-9.]+)", answer.headers["server-timing"])
    logged = caplog.records[-1].fields["stages_ms"]  # type: ignore[attr-defined]
    assert {stage: float(spent) for stage, spent in told} == logged
    assert logged["read"] > 0
    assert "server-timing" not in post_file(client_for(), cat[:length]).headers


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"X-Server-Timing": "1", "Sec-Fetch-Site": "same-origin"}, True),
        ({"X-Server-Timing": "1", "Origin": "http://testserver"}, True),
        ({"X-Server-Timing": "1", "Sec-Fetch-Site": "same-site", "Origin": "http://testserver"}, False),
        ({"X-Server-Timing": "0", "Sec-Fetch-Site": "same-origin"}, False),
        ({"X-Server-Timing": "1"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, False),
    ],
)
def test_server_timing_is_sent_to_the_servers_own_page(
    client: TestClient, cat: bytes, headers: dict[str, str], told: bool
) -> None:
    assert ("server-timing" in post_file(client, cat, headers=headers).headers) == told


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1.5"])
def test_a_timeout_that_is_not_allowed_is_named(client: TestClient, cat: bytes, value: str) -> None:
    answer = post_file(client, cat, headers={"X-Request-Timeout-Ms": value})
    assert_problem(answer, 400, "X-Request-Timeout-Ms", repr(value))


class Gate:
    """Blocks every inference and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.open = threading.Event(), threading.Event()
        self.inferences = 0
        original = Classifier.compute

        def held_up(classifier: Classifier, *arguments: Any) -> Any:
            self.inferences += 1
            self.begun.set()
            assert self.open.wait(30)
            return original(classifier, *arguments)

        monkeypatch.setattr(Classifier, "compute", held_up)


def test_a_passed_deadline_is_a_504_whether_the_servers_or_the_clients(
    client_for: ClientFor, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    client = client_for(request_timeout_ms=200)
    assert_problem(post_file(client, cat), 504, "deadline")
    assert_problem(post_file(client, cat, headers={"X-Request-Timeout-Ms": "50"}), 504, "deadline")
    gate.open.set()
    assert post_file(client, cat).status_code == 200


def test_a_full_queue_is_a_429_with_retry_after(
    client_for: ClientFor, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    queued = threading.Event()
    original = Scheduler.run

    async def record_call(scheduler: Any, jobs: Any, deadline: float) -> Any:
        running = asyncio.ensure_future(original(scheduler, jobs, deadline))
        await asyncio.sleep(0)  # it is in the queue as soon as it has begun
        if len(jobs) == 2:
            queued.set()
        return await running

    deferred: list[bool] = []
    monkeypatch.setattr(Scheduler, "run", record_call)
    monkeypatch.setattr(Wakeups, "defer", lambda _, wanted: deferred.append(wanted))
    client = client_for(max_queue=2, max_files=2, threads=1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post_file, client, cat)
        assert gate.begun.wait(10)
        files = [("file", ("a.jpg", cat)), ("file", ("b.jpg", cat))]
        waiting = pool.submit(client.post, "/upload", files=files)
        assert queued.wait(10)
        refused = post_file(client, cat)
        assert_problem(refused, 429, "no room for 1 image: 2 are waiting and the limit is 2")
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert client.get("/livez").status_code == 200
        gate.open.set()
        assert first.result(10).status_code == 200
        assert [len(result["top_k"]) for result in waiting.result(10).json()["results"]] == [5, 5]
    assert gate.inferences == 3
    assert post_file(client, cat).status_code == 200
    assert deferred == [False, False, True, False]


def test_an_invalid_image_is_refused_while_another_is_computed(
    client_for: ClientFor, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is not an image is refused before it is queued."""
    gate = Gate(monkeypatch)
    client = client_for(threads=1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post_file, client, cat)
        assert gate.begun.wait(10)
        assert_problem(post_file(client, b"no picture"), 415)
        gate.open.set()
        assert first.result(10).status_code == 200


def test_large_photographs_are_decoded_at_a_reduced_scale_by_default(
    client_for: ClientFor, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    original = JpegImageFile.load

    def record_call(image: JpegImageFile) -> Any:
        sizes.append(image.size)
        return original(image)

    monkeypatch.setattr(JpegImageFile, "load", record_call)
    large = io.BytesIO()
    Image.open(io.BytesIO(cat)).resize((2000, 1400)).save(large, "JPEG")
    sizes.clear()
    post_file(client_for(sandbox="off", decode="exact"), large.getvalue())
    assert set(sizes) == {(2000, 1400)}
    sizes.clear()
    post_file(client_for(sandbox="off", decode="fast"), large.getvalue())
    assert sizes[-1] == (1000, 664)  # without the rows below the crop
