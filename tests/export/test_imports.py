"""The export imports little of the server, and the container image's export stage copies just that."""

import ast
import re
from pathlib import Path

import pytest

from export.files import ROOT

COPIED = [
    *(f"serve/config/{name}.py" for name in ("cpus", "regular_file")),
    *(f"serve/model/{name}.py" for name in ("card", "features", "labels", "openvino_plugin", "postprocess")),
]
ALLOWED = {"serve.imaging", "serve.errors", "serve.printable"} | {
    name.removesuffix(".py").replace("/", ".") for name in COPIED
}
MODULES = sorted(
    [path for folder in ("export", "serve/imaging") for path in (ROOT / folder).rglob("*.py")]
    + [ROOT / name for name in COPIED]
)


def imported_from_serve(module: Path) -> set[str]:
    """The entries of `ALLOWED` that a module imports, and the whole names of others."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    names = {name for name in found if name.split(".")[0] == "serve"}
    return {next((entry for entry in ALLOWED if f"{name}.".startswith(f"{entry}.")), name) for name in names}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_what_the_image_copies_is_imported(module: Path) -> None:
    assert imported_from_serve(module) <= ALLOWED


def test_the_dockerfile_copies_these_for_the_export_and_no_more() -> None:
    stage = re.search(r"^FROM base AS export$(.*?)^FROM ", (ROOT / "Dockerfile").read_text(), re.MULTILINE | re.DOTALL)
    assert stage
    copied = {name for line in re.findall(r"^COPY (.*)$", stage[1], re.MULTILINE) for name in line.split()[:-1]}
    of_serve = {name.removesuffix(".py").strip("/").replace("/", ".") for name in copied if name.startswith("serve")}
    assert of_serve - {"serve.config", "serve.model"} == ALLOWED == set.union(*map(imported_from_serve, MODULES))
