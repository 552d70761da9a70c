import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from export.models import ARCHITECTURES, Architecture
from export.weights import build_network, read_weights, untrained_weights
from serve.config import ROOT
from tests.references import DATA

SAMPLE = 60


@pytest.fixture(scope="session")
def densenet() -> Architecture:
    return ARCHITECTURES["densenet121"]


@pytest.fixture(scope="session")
def weights(weights_file: Path | None, densenet: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The WEIGHTS given, else a file of weights from a seed, with BatchNorm's statistics run in."""
    if weights_file is not None:
        return weights_file
    path = tmp_path_factory.mktemp("weights") / "seeded.pth"
    torch.save(untrained_weights(densenet, seed=0).state, path)
    return path


@pytest.fixture(scope="session")
def photographs(photo_folder: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with at least `SAMPLE` of the PHOTOS, spread evenly over them, else with the pictures of tests/data."""
    source = photo_folder or DATA / "photos"
    every = sorted(path for path in source.iterdir() if path.is_file())
    folder = tmp_path_factory.mktemp("photographs")
    for path in every[:: max(1, len(every) // SAMPLE)]:
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def network(densenet: Architecture, weights: Path) -> nn.Module:
    return build_network(densenet, read_weights(weights))


@pytest.fixture(scope="session")
def exported(weights: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python export/export_onnx.py` writes."""
    output = tmp_path_factory.mktemp("models") / "densenet121.onnx"
    subprocess.run(
        [
            sys.executable,
            "export/export_onnx.py",
            *("--weights", str(weights)),
            *("--photos", str(photographs)),
            *("--output", str(output)),
        ],
        cwd=ROOT,
        check=True,
    )
    return output


@pytest.fixture(scope="session")
def runtime_python() -> Path:
    """The interpreter that serves: the runtime's own environment, without torch."""
    python = ROOT / ".venv" / "runtime" / "bin" / "python"
    if not python.exists():
        raise pytest.UsageError(f"{python} does not exist; run the tests by 'make test', which makes it")
    return python
