"""The dashboard and the alert rules name only what the running server has."""

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

NAME = re.compile(r"\b(?:serve|process)_\w+")
SELECTOR = re.compile(r"\b((?:serve|process)_\w+)\{([^}]*(?:\{[^}]*\}[^}]*)*)\}")
MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')
# Grafana's own variables, which become a job's name and a length of time.
VARIABLES = {"job", "instance"}


@pytest.fixture(scope="module")
def series(server: ServerProcess, photos: dict[str, bytes]) -> dict[str, list[dict[str, str]]]:
    """Every sample's labels by its name, after a picture was classified and each route of it was asked."""
    model = requests.get(f"{server.url}/model", timeout=10).json()["name"]
    requests.post(f"{server.url}/upload", files={"file": photos["cat"]}, timeout=10)
    requests.post(f"{server.url}/v2/models/{model}/infer", json={}, timeout=10)
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(requests.get(f"{server.url}/metrics", timeout=10).text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


def dashboard(folder: Path) -> Iterator[str]:
    for panel in json.loads((folder / "dashboard.json").read_text())["panels"]:
        assert panel["targets"]
        for target in panel["targets"]:
            yield target["expr"]


def alerts(folder: Path) -> Iterator[str]:
    for group in yaml.safe_load((folder / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert set(rule) >= {"alert", "expr", "labels", "annotations"}
            assert set(rule["annotations"]) == {"summary", "description"}
            yield rule["expr"]


def unknown(expression: str, series: dict[str, list[dict[str, str]]]) -> list[str]:
    """What an expression names that the server does not have: metrics, labels, and values of labels."""
    wrong = [name for name in NAME.findall(expression) if name not in series]
    for name, matchers in SELECTOR.findall(expression):
        for label, kind, value in MATCHER.findall(matchers):
            if label in VARIABLES or name not in series:
                continue
            values = {labels.get(label) for labels in series[name]}
            wanted = value.split("|") if kind == "=~" else [value]
            # A status is a series only once there was one.
            if values == {None} or (label != "code" and not set(wanted) <= values):
                wrong.append(f"{name}{{{label}={value}}}")
    return wrong


@pytest.mark.parametrize("read", [dashboard, alerts])
def test_all_that_they_name_is_there(read: Any, deployed: Path, series: dict[str, list[dict[str, str]]]) -> None:
    expressions = list(read(deployed))
    assert [wrong for expression in expressions for wrong in unknown(expression, series)] == []
    TABLE.append((f"Grafana and Prometheus: {read.__name__}", f"{len(expressions)} expressions name what there is"))


def test_what_is_not_there_is_found(series: dict[str, list[dict[str, str]]]) -> None:
    for expression in (
        "rate(serve_nothing_total[5m])",
        'serve_requests_total{path="/upload"}',
        'serve_rejected_total{reason="queue_fuller"}',
        'serve_requests_total{route=~"/upload|/download"}',
    ):
        assert unknown(expression, series)
