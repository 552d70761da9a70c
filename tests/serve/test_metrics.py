"""`/metrics`, read with the official parser after known traffic."""

import re
import time
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from serve import __version__
from serve.api.app import create_app
from serve.config.settings import ROOT, Config
from serve.model.classifier import Classifier
from serve.observability.metrics import Metrics
from serve.observability.record import RequestRecord
from tests.serve.conftest import ClientFor


def samples(client: TestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(found: dict[Any, float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_known_traffic_is_counted(client: TestClient, classifier: Classifier, cat: bytes) -> None:
    for _ in range(3):
        assert client.post("/upload", files={"file": ("cat.jpg", cat)}).status_code == 200
    assert client.post("/upload", files=[("file", ("a.jpg", cat)), ("file", ("b.txt", b"x"))]).status_code == 200
    assert client.post("/upload", files={"file": ("a.txt", b"x")}).status_code == 415
    assert client.post("/upload?top_k=0", files={"file": ("cat.jpg", cat)}).status_code == 400
    assert client.get("/upload").status_code == 405
    for number in range(20):
        assert client.get(f"/nothing-{number}").status_code == 404
    assert client.get("/v2/models/tiny").status_code == 200
    assert client.get("/v2/models/other").status_code == 404
    assert client.get("/v2/models/tiny/versions/1").status_code == 200
    found = samples(client)
    assert value(found, "serve_requests_total", route="/upload", code="200") == 4
    assert value(found, "serve_requests_total", route="/upload", code="415") == 1
    assert value(found, "serve_requests_total", route="/upload", code="400") == 1
    assert value(found, "serve_requests_total", route="/upload", code="405") == 1
    assert value(found, "serve_requests_total", route="none", code="404") == 20
    assert value(found, "serve_requests_total", route="/v2/models/{name}", code="200") == 1
    assert value(found, "serve_requests_total", route="/v2/models/{name}", code="404") == 1
    assert value(found, "serve_requests_total", route="/v2/models/{name}/versions/{version}", code="200") == 1
    assert value(found, "serve_request_duration_seconds_count", route="/upload") == 7
    assert value(found, "serve_request_duration_seconds_bucket", route="/upload", le="+Inf") == 7
    assert 0 < value(found, "serve_request_duration_seconds_sum", route="/upload") < 60
    assert value(found, "serve_stage_duration_seconds_count", stage="read") == 5  # the body of the 415 was read, too
    for stage in ("decode", "preprocess", "queue", "infer"):
        assert value(found, "serve_stage_duration_seconds_count", stage=stage) == 4
    assert value(found, "serve_rejected_total", reason="unsupported_format") == 1
    assert value(found, "serve_rejected_total", reason="bad_parameter") == 1
    assert value(found, "serve_rejected_total", reason="unknown_model") == 1
    assert value(found, "serve_rejected_total", reason="unknown_route") == 20
    assert value(found, "serve_rejected_total", reason="method_not_allowed") == 1
    assert value(found, "serve_rejected_total", reason="queue_full") == 0
    assert value(found, "serve_queue_depth") == 0
    assert value(found, "serve_requests_in_progress") == 1  # this one
    assert (
        value(
            found,
            "serve_build_info",
            version=__version__,
            model="tiny",
            variant="fp32",
            engine="cpu",
            engine_reason=classifier.model.card["engine_reason"],
            decoders="sealed",
        )
        == 1
    )


def test_status_500_is_counted_from_zero(client: TestClient) -> None:
    """A series that starts with its first error would never show an increase."""
    found = samples(client)
    for route in ("/upload", "/v2/models/{name}/infer", "none"):
        assert value(found, "serve_requests_total", route=route, code="500") == 0


def test_buckets_reach_from_five_milliseconds_to_ten_seconds(client: TestClient) -> None:
    client.get("/livez")
    bounds = [
        float(dict(labels)["le"])
        for (name, labels) in samples(client)
        if name == "serve_request_duration_seconds_bucket" and ("route", "/livez") in labels
    ]
    assert (min(bounds), sorted(bounds)[-2]) == (0.005, 10.0)


def test_requests_refused_by_a_guard_are_counted_by_route_and_reason(
    client_for: ClientFor, cat: bytes, tmp_path: Any
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key\n")
    client = client_for(api_keys_file=keys)
    assert client.post("/upload", files={"file": ("cat.jpg", cat)}).status_code == 401
    assert client.get("/", headers={"Origin": "https://evil.example"}).status_code == 403
    assert client.post("/v2/models/tiny/infer", content=b"{}").status_code == 401
    found = samples(client)
    assert value(found, "serve_requests_total", route="/v2/models/{name}/infer", code="401") == 1
    assert value(found, "serve_requests_total", route="/upload", code="401") == 1
    assert value(found, "serve_requests_total", route="/", code="403") == 1
    assert value(found, "serve_rejected_total", reason="unauthorised") == 2
    assert value(found, "serve_rejected_total", reason="foreign_origin") == 1


def test_the_queue_depth_is_read_for_each_scrape() -> None:
    metrics = Metrics({"model": "tiny"})
    depth = 3
    metrics.queue_depth = lambda: depth
    assert b"serve_queue_depth 3.0" in metrics.render()
    depth = 5
    assert b"serve_queue_depth 5.0" in metrics.render()


def test_the_queue_depth_is_updated_at_the_end_of_each_request() -> None:
    """Some items leave the queue without being prepared, because their deadline passed or their client disconnected."""
    metrics = Metrics({"model": "tiny"})
    depth = 3
    metrics.queue_depth = lambda: depth
    metrics.update_queue_depth()
    assert metrics._registry.get_sample_value("serve_queue_depth") == 3
    depth = 1
    metrics.request_started()
    metrics.request_finished("none", RequestRecord("id", status=504), 0.1)
    assert metrics._registry.get_sample_value("serve_queue_depth") == 1


def test_the_queue_depth_is_updated_whenever_it_changes(
    config: Config, classifier: Classifier, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only on a scrape of this process: with several workers, another one shows what this one recorded last."""
    metrics = Metrics({"model": "tiny"})
    original = Classifier.prepare
    seen = []

    def prepare(self: Classifier, job: Any) -> Any:
        time.sleep(0.1)  # gives the event loop time to record the depth
        seen.append(metrics._registry.get_sample_value("serve_queue_depth"))
        return original(self, job)

    monkeypatch.setattr(Classifier, "prepare", prepare)
    with TestClient(create_app(replace(config, streams=1), classifier, metrics=metrics)) as client:
        files = [("file", (f"{number}.jpg", cat)) for number in range(3)]
        assert client.post("/upload", files=files).status_code == 200
    assert seen == [2, 1, 0]


def test_every_metric_is_explained_to_operators(client: TestClient) -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    told = re.findall(r"^\| `(serve_\w+)` \|", text, re.MULTILINE)
    client.get("/livez")  # a route's duration is a series only once it was asked
    served = {re.sub("_(bucket|sum|count)$", "", name) for name, _ in samples(client) if name.startswith("serve_")}
    assert sorted(told) == sorted(served)


def test_the_process_is_measured_too(client: TestClient) -> None:
    found = samples(client)
    assert value(found, "process_resident_memory_bytes") > 10**7
    assert value(found, "process_open_fds") > 3
