"""Who may import whom, read off the source; what the server loads, read off a running interpreter."""

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions

import pytest

from serve.config import ROOT

SERVE = ROOT / "serve"
# __main__ → app → classifier → the middle modules → config and errors; each may import what stands to its right.
MAY_IMPORT = {
    "__init__": set(),
    "errors": set(),
    "printable": set(),
    "log": {"printable"},
    "cpus": set(),
    "memory": set(),
    "values": set(),
    "command_line": {"printable"},
    "regular_file": set(),
    "settings_file": {"errors", "printable", "regular_file"},
    "config": {"command_line", "cpus", "errors", "settings_file", "values"},
    "lifecycle": {"errors"},
    "scheduler": {"errors"},
    "parameters": {"errors"},
    "preprocess": {"errors"},
    "av1": set(),
    "avif": {"av1", "errors"},
    "claims": {"errors"},
    "formats": set(),
    "picture": {"avif", "claims", "errors", "formats", "preprocess"},
    "postprocess": {"errors", "regular_file"},
    "model": {"errors", "regular_file"},
    "form": {"errors"},
    "upload": {"errors", "form"},
    "arrival": {"errors", "pacing"},
    "pacing": set(),
    "keys": {"errors", "regular_file"},
    "connections": set(),
    "listeners": {"config", "errors"},
    "leaving": {"printable"},
    "counting": set(),
    "error_stream": set(),
    "workers": {"counting", "errors", "leaving", "metrics"},
    "problems": {"errors"},
    "metrics": {"counting", "errors", "problems"},
    "tracing": set(),
    "origins": set(),
    "one_write": set(),
    "middleware": {"errors", "metrics", "origins", "problems", "request_ids", "tracing"},
    "tensors": {"errors"},
    "inference": {"errors", "postprocess", "tensors"},
    "openapi": {"__version__", "config", "inference", "openapi_components", "openapi_schemas"},
    "openapi_components": {"parameters"},
    "openapi_schemas": set(),
    "docs_page": set(),
    "pages": {"config", "formats", "origins"},
    "catalogue": {"errors", "printable"},
    "classifier": {"catalogue", "config", "errors", "memory", "model", "picture", "preprocess", "postprocess"},
    "answers": {"classifier", "errors", "problems", "scheduler"},
    "handlers": {
        "answers",
        "arrival",
        "classifier",
        "config",
        "docs_page",
        "errors",
        "form",
        "inspector",
        "lifecycle",
        "memory",
        "metrics",
        "openapi",
        "origins",
        "pages",
        "parameters",
        "formats",
        "scheduler",
        "upload",
    },
    "handlers_v2": {"__version__", "classifier", "errors", "handlers", "inference", "scheduler", "upload"},
    "app": {
        "__version__",
        "classifier",
        "config",
        "errors",
        "handlers",
        "handlers_v2",
        "inference",
        "keys",
        "lifecycle",
        "metrics",
        "middleware",
        "origins",
        "problems",
    },
    "inspector": {"errors"},
    "http_server": {"config", "connections", "leaving", "lifecycle", "metrics", "turns"},
    "turns": {"http_protocol"},
    "framing": {"origins"},
    "request_ids": set(),
    "http_protocol": {"connections", "framing", "metrics", "one_write", "problems", "request_ids"},
    "health": {"command_line", "config"},
    "show_config": {"config", "printable"},
    "strays": {"config", "printable"},
    "progress": set(),
    "inputs": {"errors"},
    "folder": {"answers", "classifier", "errors", "problems", "regular_file"},
    "records": {"errors", "folder", "printable"},
    "output_file": {"command_line", "errors"},
    "evaluation": {"folder"},
    "classify": {
        "classifier",
        "config",
        "errors",
        "evaluation",
        "folder",
        "inputs",
        "leaving",
        "log",
        "output_file",
        "printable",
        "progress",
        "records",
    },
    "autotune": {"catalogue", "config", "errors", "model", "printable", "progress", "regular_file", "settings_file"},
    "__main__": {
        "app",
        "catalogue",
        "classifier",
        "command_line",
        "config",
        "connections",
        "counting",
        "error_stream",
        "errors",
        "http_server",
        "leaving",
        "lifecycle",
        "listeners",
        "log",
        "memory",
        "strays",
        "workers",
    },
}
OWNED = {
    "starlette": {"app", "handlers", "handlers_v2"},
    "prometheus_client": {"metrics"},
    "onnxruntime": {"model"},
    "uvicorn": {"http_server", "http_protocol"},
    "httptools": {"http_protocol"},
    "python_multipart": {"form"},
}
FORBIDDEN = {"torch", "torchvision", "onnx", "onnxscript", "safetensors", "export", "tests"}


def imported_by(module: str) -> set[str]:
    tree = ast.parse((SERVE / f"{module}.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            found |= {f"serve.{alias.name}" for alias in node.names} if node.module == "serve" else {node.module or ""}
    return found


def test_every_module_is_in_the_map() -> None:
    assert {path.stem for path in SERVE.rglob("*.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", sorted(MAY_IMPORT))
def test_modules_import_only_towards_the_bottom(module: str) -> None:
    own = {name.split(".")[1] for name in imported_by(module) if name.startswith("serve.")}
    assert own <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", sorted(MAY_IMPORT))
def test_each_framework_has_its_owner_and_torch_none(module: str) -> None:
    roots = {name.split(".")[0] for name in imported_by(module)}
    assert not roots & FORBIDDEN
    assert {framework for framework in OWNED if framework in roots} == {
        framework for framework, owners in OWNED.items() if module in owners
    }


def test_the_server_loads_nothing_but_its_locked_packages() -> None:
    code = (
        "import json, sys; before = set(sys.modules); import serve.__main__, serve.app, uvicorn; "
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    distributions = packages_distributions()
    loaded = {
        distribution.lower().replace("_", "-")
        for root in json.loads(output)
        for distribution in distributions.get(root, [])
    }
    lock = (ROOT / "requirements" / "runtime.txt").read_text()
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    assert {"onnxruntime", "starlette", "uvicorn", "pillow", "numpy", "python-multipart"} <= locked
    assert loaded <= locked


def test_no_lock_file_names_an_index_or_torch_for_the_runtime() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text()
        assert "://" not in text
        assert "--index" not in text
        requirements = re.findall(r"^[a-z0-9-]+==.*(?:\n {4}--hash=sha256:.*)+", text, re.MULTILINE)
        assert len(requirements) == len(re.findall("==[0-9]", re.sub(r" ;.*", "", text))), f"{path.name} lacks hashes"
    runtime = (ROOT / "requirements" / "runtime.txt").read_text()
    assert not re.search(r"^(torch|torchvision|onnx|nvidia)[^a-z]", runtime, re.MULTILINE)
