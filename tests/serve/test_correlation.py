"""W3C Trace Context: which `traceparent` headers are accepted."""

import logging
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve.observability.correlation import parse_traceparent

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "header", [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00", f"cc-{TRACE}-{PARENT}-01-what"]
)
def test_a_valid_traceparent_is_parsed(header: str) -> None:
    assert parse_traceparent(header) == {"trace_id": TRACE, "parent_id": PARENT}


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-what",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-1",
        f" 00-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\n",
    ],
)
def test_an_invalid_traceparent_is_ignored(header: str) -> None:
    assert parse_traceparent(header) == {}


def test_trace_and_stages_are_in_the_log(client: TestClient, cat: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "serve.access"):
        answer = client.post(
            "/upload", files={"file": ("cat.jpg", cat)}, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}
        )
        client.get("/livez", headers={"traceparent": "nonsense"})
    upload, live = (record.fields for record in caplog.records if record.name == "serve.access")  # type: ignore[attr-defined]
    assert (upload["trace_id"], upload["parent_id"]) == (TRACE, PARENT)
    assert upload["request_id"] == answer.headers["x-request-id"]
    stages: dict[str, Any] = upload["stages_ms"]
    assert list(stages) == ["read", "decode", "preprocess", "queue", "infer"]
    assert all(spent >= 0 for spent in stages.values())
    assert sum(stages.values()) <= upload["ms"] + 1
    assert stages["infer"] > 0
    assert not {"trace_id", "stages_ms"} & live.keys()
