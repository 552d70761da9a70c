"""The dashboard and the alert rules name only metrics and labels that the running server has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.clients.conftest import TABLE
from tests.server_process import ServerProcess

# PromQL's functions and operators, as far as they are used here.
FUNCTIONS = {"rate", "sum", "count", "histogram_quantile", "min_over_time", "max_over_time", "absent", "label_values"}
OPERATORS = {"by", "and", "on", "unless"}
# Metrics that Prometheus adds for each target.
PROMETHEUS_METRICS = {"up"}
# Labels that Prometheus adds.
TARGET_LABELS = {"job", "instance"}
STRING = re.compile(r'"[^"]*"')
# Grafana's variables and durations.
NOT_METRICS = re.compile(r"\$\w+|\[\w+\]|\[\$\w+\]|\b\d[\w.]*\b")
SELECTOR = re.compile(r"(\w+)\{((?:[^}\"]|\"[^\"]*\")*)\}")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
CODE = re.compile(r"[1-5]\d\d")


@pytest.fixture(scope="module")
def series(server: ServerProcess, photos: dict[str, bytes]) -> dict[str, list[dict[str, str]]]:
    """The labels of all samples by metric, after requests to every route that classifies images."""
    model = requests.get(f"{server.url}/model", timeout=10).json()["name"]
    requests.post(f"{server.url}/upload", files={"file": photos["cat"]}, timeout=10)
    for path in (f"/v2/models/{model}/infer", f"/v2/models/{model}/versions/1/infer"):
        requests.post(f"{server.url}{path}", json={}, timeout=10)
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(requests.get(f"{server.url}/metrics", timeout=10).text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


def dashboard(folder: Path) -> Iterator[str]:
    board = json.loads((folder / "dashboard.json").read_text())
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]
    for panel in board["panels"]:
        assert panel["targets"]
        for target in panel["targets"]:
            yield target["expr"]


def alerts(folder: Path) -> Iterator[str]:
    for group in yaml.safe_load((folder / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert set(rule) >= {"alert", "expr", "labels", "annotations"}
            assert set(rule["annotations"]) == {"summary", "description"}
            kept = set(re.findall(r"\w+", " ".join(GROUPING.findall(rule["expr"])))) or TARGET_LABELS
            for words in rule["annotations"].values():
                assert set(re.findall(r"\$labels\.(\w+)", words)) <= kept
            yield rule["expr"]


def unknown(expression: str, series: dict[str, list[dict[str, str]]]) -> list[str]:
    """The metrics, labels and label values in an expression that the server does not have."""
    wrong = []
    for name, matchers in SELECTOR.findall(expression):
        for label, kind, value in MATCHER.findall(matchers):
            values = {sample.get(label) for sample in series.get(name, [])}
            wanted = value.split("|") if kind in ("=~", "!~") else [value]
            if label in TARGET_LABELS:
                continue
            # A status has a series only once it has occurred.
            known = all(CODE.fullmatch(each) for each in wanted) if label == "code" else set(wanted) <= values
            if not known or None in values:
                wrong.append(f"{name}{{{label}{kind}{value}}}")
    grouped = set(re.findall(r"\w+", " ".join(GROUPING.findall(expression))))
    wrong += sorted(used_metrics(expression) - series.keys())
    samples = [sample for name in used_metrics(expression) & series.keys() for sample in series[name]]
    return wrong + sorted(grouped - {label for sample in samples for label in sample} - TARGET_LABELS)


def used_metrics(expression: str) -> set[str]:
    """The metrics that an expression uses."""
    bare = re.sub(r"\{[^{}]*\}", " ", STRING.sub('""', expression))
    return (
        set(re.findall(r"[a-zA-Z_]\w*", NOT_METRICS.sub(" ", GROUPING.sub(" ", bare))))
        - FUNCTIONS
        - OPERATORS
        - PROMETHEUS_METRICS
        - TARGET_LABELS
    )


@pytest.mark.parametrize("read", [dashboard, alerts])
def test_all_that_they_name_is_there(read: Any, deployed: Path, series: dict[str, list[dict[str, str]]]) -> None:
    expressions = list(read(deployed))
    assert [wrong for expression in expressions for wrong in unknown(expression, series)] == []
    TABLE.append(
        (f"Grafana and Prometheus: {read.__name__}", f"{len(expressions)} expressions name existing metrics and labels")
    )


IMAGE_ROUTES = {"/upload", "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"}


@pytest.mark.parametrize("read", [dashboard, alerts])
def test_expressions_about_images_cover_all_routes_that_accept_them(read: Any, deployed: Path) -> None:
    named = [
        value for expression in read(deployed) for _, _, value in MATCHER.findall(expression) if "/upload" in value
    ]
    assert len(named) >= 4
    assert all(set(value.split("|")) == IMAGE_ROUTES for value in named)


def test_alerts_cover_a_missing_server_and_one_that_refuses_everything(deployed: Path) -> None:
    expressions = " ".join(alerts(deployed))
    for part in ("up == 0", "absent(serve_build_info)", 'reason="not_ready"', "unless"):
        assert part in expressions


def test_expressions_with_unknown_metrics_or_labels_are_found(series: dict[str, list[dict[str, str]]]) -> None:
    for expression in (
        "rate(serve_nothing_total[5m])",
        "rate(http_requests_total[5m])",
        "srv_queue_depth > 1",
        'serve_requests_total{path="/upload"}',
        'serve_requests_total{code="5000"}',
        'serve_requests_total{code=~"abc"}',
        'serve_requests_total{route!="/nope"}',
        'serve_rejected_total{reason="queue_fuller"}',
        'serve_requests_total{route=~"/upload|/download"}',
        "sum by (nothing) (serve_requests_total)",
        "sum by (reason) (serve_queue_depth)",
        "label_values(serve_built_info, job)",
    ):
        assert unknown(expression, series)
