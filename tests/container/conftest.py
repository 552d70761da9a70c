"""Settings of these tests: IMAGE, the name of an image built by `make image`; DOCKER, the engine's command."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container.engine import LOCKED_DOWN, Container, Image, running
from tests.server_process import ROOT

SBOM = "usr/share/sbom/densenet-server.cdx.json"
NAME = os.environ.get("IMAGE") or "densenet-server"
# Title → lines of the tables that are printed at the end, in the order in which tests add them.
TABLE: dict[str, list[str]] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for title, lines in TABLE.items():
        terminalreporter.section(title)
        terminalreporter.write_line("\n".join(lines))


@pytest.fixture(scope="session")
def image_name() -> str:
    return NAME


@pytest.fixture(scope="session")
def image(image_name: str) -> Image:
    return Image.load(image_name)


@pytest.fixture(scope="session")
def container(image_name: str) -> Iterator[Container]:
    """The image as an operator should run it: read-only, without capabilities or new privileges."""
    with running(image_name, *LOCKED_DOWN) as started:
        yield started


@pytest.fixture(scope="session")
def model_file(image: Image) -> Iterator[Path]:
    """A copy of the model in the image."""
    path = next(name for name in image.contents if name.startswith("app/models/") and name.endswith(".onnx"))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / Path(path).name
        copy.write_bytes(image.contents[path])
        yield copy


@pytest.fixture(scope="session")
def cat() -> bytes:
    return (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
