"""Metrics of several processes in shared memory."""

import os

import pytest

from serve.api.app import create_app, create_metrics
from serve.config.settings import Config
from serve.model.classifier import Classifier
from serve.observability.metrics import STAGES, Metrics
from serve.observability.record import RequestRecord
from serve.observability.shared_metrics import CELLS, MetricsMemory
from serve.problems import RULES


def finish(metrics: Metrics, route: str, status: int = 200) -> None:
    metrics.request_started()
    metrics.request_finished(route, RequestRecord("id", status=status), 0.1)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics._registry.get_sample_value(name, labels)


def test_each_process_shows_the_sum_of_all() -> None:
    memory = MetricsMemory(2)
    first, second = (Metrics({"model": "tiny"}, memory, number) for number in range(2))
    for metrics in (first, second, second):
        finish(metrics, "none")
    second.request_started()
    for metrics in (first, second):
        assert value(metrics, "serve_requests_total", route="none", code="200") == 3
        assert value(metrics, "serve_request_duration_seconds_count", route="none") == 3
        assert value(metrics, "serve_request_duration_seconds_sum", route="none") == pytest.approx(0.3)
        assert value(metrics, "serve_requests_in_progress") == 1
        assert value(metrics, "serve_build_info", model="tiny") == 1


def test_a_forked_process_counts_in_the_same_memory() -> None:
    memory = MetricsMemory(2)
    shown = Metrics({"model": "tiny"}, memory, 0)
    if (child := os.fork()) == 0:
        finish(Metrics({"model": "tiny"}, memory, 1), "none", 404)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert value(shown, "serve_requests_total", route="none", code="404") == 1


def test_counters_of_an_ended_process_stay_and_its_gauges_do_not() -> None:
    memory = MetricsMemory(2)
    memory.process_ids[1] = os.getpid()
    shown, ended = (Metrics({"model": "tiny"}, memory, number) for number in range(2))
    finish(ended, "none")
    ended.request_started()
    ended.queue_depth = lambda: 3
    ended.update_queue_depth()
    assert value(shown, "serve_queue_depth") == 3
    assert value(shown, "process_open_fds")
    memory.clear(1)
    assert value(shown, "serve_queue_depth") == value(shown, "serve_requests_in_progress") == 0
    assert value(shown, "process_open_fds") is None
    assert value(shown, "serve_requests_total", route="none", code="200") == 1
    replacement = Metrics({"model": "tiny"}, memory, 1)
    finish(replacement, "none")
    assert value(shown, "serve_requests_total", route="none", code="200") == 2


def test_buckets_are_counted_up_to_their_bounds() -> None:
    metrics = Metrics({"model": "tiny"})
    metrics.observe_stages([("read", seconds) for seconds in (0.0005, 0.0006, 0.5, 11.0)])
    found = {
        bound: value(metrics, "serve_stage_duration_seconds_bucket", stage="read", le=bound)
        for bound in ("0.0005", "0.001", "0.3", "0.5", "10.0", "+Inf")
    }
    assert found == {"0.0005": 1, "0.001": 2, "0.3": 2, "0.5": 3, "10.0": 3, "+Inf": 4}


def test_every_status_and_stage_has_its_place(config: Config, classifier: Classifier) -> None:
    metrics = create_metrics(classifier)
    app = create_app(config, classifier, metrics=metrics)
    routes = [*metrics._requests]
    assert len(routes) == len(app.router.routes) + 1
    codes = {200, 499, *(rule.status for rule in RULES.values())}
    for route in routes:
        for code in codes:
            finish(metrics, route, code)
    metrics.observe_stages([(stage, 0.1) for stage in STAGES])
    text = metrics.render().decode()
    assert text.count("serve_requests_total{") == len(routes) * len(codes)
    assert metrics._used < CELLS


def test_more_series_than_there_is_room_for_are_an_error() -> None:
    with pytest.raises(ValueError, match=f"more than {CELLS} cells"):
        Metrics({"model": "tiny"}).declare_routes(f"/{number}" for number in range(100))
