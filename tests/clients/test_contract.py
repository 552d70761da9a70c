"""Tests the OpenAPI document with its validator, and the running server with schemathesis, which reads it."""

import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.clients.conftest import PYTHON, TABLE
from tests.server_process import ServerProcess, running_server
from tests.tiny_model import PATH as TINY_MODEL

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
]
EXAMPLES = 60


def test_the_document_is_openapi(server: ServerProcess) -> None:
    document = requests.get(f"{server.url}/openapi.json", timeout=10).json()
    errors = list(OpenAPIV31SpecValidator(document).iter_errors())
    assert errors == []
    paths = len(document["paths"])
    TABLE.append((f"openapi-spec-validator {version('openapi-spec-validator')}", f"{paths} paths, no errors"))


def test_schemathesis_finds_nothing(run: Any, tmp_path: Path) -> None:
    with running_server(PYTHON, "--model", str(TINY_MODEL), "--log-format", "json") as server:
        printed = run(
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", Path(__file__).with_name("schemathesis.toml")),
            *("run", f"{server.url}/openapi.json"),
            *("--checks", ",".join(CHECKS)),
            *("--max-examples", str(EXAMPLES)),
            *("--seed", "1"),
            *("--generation-database", "none"),
            *("--request-timeout", "30"),
            "--no-color",
            cwd=tmp_path,
        )
        assert server.process.poll() is None
        metrics = requests.get(f"{server.url}/metrics", timeout=10).text
    assert not any('"level": "error"' in line for line in server.lines)
    cases = re.search(r"(\d+) generated, (\d+) passed", printed)
    assert cases, printed
    assert cases[1] == cases[2]
    for route in ("/upload", "/explain", "/v2/models/{name}/infer"):  # some requests had a valid image
        assert f'serve_requests_total{{code="200",route="{route}"}}' in metrics
    TABLE.append(
        (f"schemathesis {version('schemathesis')}", f"{cases[1]} requests generated from /openapi.json, no findings")
    )
