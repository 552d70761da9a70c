"""Tests the import rule between the rooms of serve/ on the source, and which packages a running server loads."""

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from serve.config.settings import ROOT

SERVE = ROOT / "serve"
# Each row may import from the rows below it and from itself; rooms of one row don't import each other.
FLOORS = (
    {"__main__"},
    {"commands"},
    {"api", "files", "server"},
    {"model"},
    {"imaging", "scheduling", "observability", "config"},
    {"problems"},
    {"errors", "printable", "__init__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
OWNED = {
    "starlette": "api",
    "prometheus_client": "observability",
    "onnxruntime": "model",
    "uvicorn": "server",
    "httptools": "server",
}
FORBIDDEN = {"torch", "torchvision", "onnx", "onnxscript", "safetensors", "export", "tests"}


MODULES = sorted(SERVE.rglob("*.py"))


def room_of(module: Path) -> str:
    return module.relative_to(SERVE).parts[0].removesuffix(".py")


def imported_by(module: Path) -> set[str]:
    """Returns the dotted names that a module imports; names imported from `serve` include their room."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            whole = node.module != "serve"
            found |= {node.module or ""} if whole else {f"serve.{alias.name}" for alias in node.names}
    return found - {"serve.__version__"}


def test_every_room_has_a_floor_and_the_top_folder_has_few_entries() -> None:
    entries = {path.name.removesuffix(".py") for path in SERVE.iterdir() if path.name != "__pycache__"}
    assert entries == set(FLOOR)
    assert len(entries) <= 14


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SERVE)))
def test_modules_import_only_towards_the_bottom(module: Path) -> None:
    room = room_of(module)
    for name in imported_by(module):
        other = name.split(".")[1] if name.startswith("serve.") else room
        assert other == room or FLOOR[other] > FLOOR[room], f"{room} imports {name}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SERVE)))
def test_each_framework_is_imported_in_one_room_and_torch_in_none(module: Path) -> None:
    roots = {name.split(".")[0] for name in imported_by(module)}
    assert not roots & FORBIDDEN
    assert {OWNED[root] for root in roots & OWNED.keys()} <= {room_of(module)}


def test_the_server_loads_nothing_but_its_locked_packages() -> None:
    code = (
        "import json, sys; before = set(sys.modules); import uvicorn; "
        "import serve.__main__, serve.commands.serve, serve.api.app; "
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
    assert {"onnxruntime", "starlette", "uvicorn", "pillow", "numpy"} <= locked
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
