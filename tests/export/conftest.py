import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torchvision.models import resnet

from export.architectures import ARCHITECTURES, Architecture, torchvision_architecture
from export.files import sha256_of
from export.known_weights import model_name
from export.onnx_graph import Array
from export.photographs import read_photograph
from export.torch_to_onnx import export_graph
from export.weights import build_network, read_weights, untrained_weights
from serve.config.settings import ROOT
from serve.imaging.normalise import normalise, to_pixels
from tests import small_densenet as small
from tests.export import small_mobilenet as mobile
from tests.references import DATA

SAMPLE = 60
# Accuracy is tested only with real weights and photographs; the header of pytest's report says which there are.
REAL = all(os.environ.get(name) for name in ("WEIGHTS", "PHOTOS"))


@pytest.fixture(scope="session")
def densenet121() -> Architecture:
    return ARCHITECTURES["densenet121"]


@pytest.fixture(scope="session")
def weights(weights_file: Path | None, densenet121: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file WEIGHTS, else a file of seeded random weights with BatchNorm statistics."""
    if weights_file is not None:
        return weights_file
    path = tmp_path_factory.mktemp("weights") / "seeded.pth"
    torch.save(untrained_weights(densenet121, seed=0).state, path)
    return path


@pytest.fixture(scope="session")
def photographs(photo_folder: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with at least `SAMPLE` of the PHOTOS, spread evenly over them, else with those of tests/data."""
    source = photo_folder or DATA / "photos"
    every = sorted(path for path in source.iterdir() if path.is_file())
    folder = tmp_path_factory.mktemp("photographs")
    for path in every[:: max(1, len(every) // SAMPLE)]:
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def network(densenet121: Architecture, weights: Path) -> nn.Module:
    return build_network(densenet121, read_weights(weights))


@pytest.fixture(scope="session")
def exported(weights: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 model that `python export/export_onnx.py` writes; called densenet121 only if WEIGHTS are published."""
    output = tmp_path_factory.mktemp("models") / f"{model_name(weights, sha256_of(weights))}.onnx"
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


@dataclass(frozen=True)
class Network:
    """An exported fp32 model with images that it can tell apart."""

    architecture: Architecture
    model: onnx.ModelProto
    calibration_images: Array
    other_images: Array

    def calibration_batches(self) -> Iterator[Array]:
        """The images for calibration, one at a time, FP32 `[1, 3, S, S]`."""
        return (image[None] for image in self.calibration_images)


def patterns(count: int, side: int, seed: int) -> Array:
    """Smooth random images made from pixels; their activations are more like a photograph's than those of noise."""
    noise = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    smooth: Array = nn.functional.interpolate(noise, size=(side, side), mode="bilinear").numpy()
    spec = replace(small.SPEC, crop=side)
    return np.concatenate([normalise(pixels.tobytes(), spec) for pixels in to_pixels(smooth, spec)])


def untrained(architecture: Architecture, images: int = 24) -> Network:
    """An untrained network: seeded weights, and BatchNorm statistics of the kind of images that are used."""
    side = architecture.preprocessing.crop
    network = build_network(architecture, untrained_weights(architecture, seed=1))
    network.train()
    with torch.no_grad():
        for seed in range(3):
            network(torch.from_numpy(patterns(16, side, seed)))
    model = export_graph(network.eval(), side)
    return Network(architecture, model, patterns(images, side, 10), patterns(8, side, 11))


@pytest.fixture(scope="session")
def small_densenet(densenet121: Architecture) -> Network:
    architecture = replace(densenet121, name="small_densenet", build=small.build, preprocessing=small.SPEC)
    return Network(architecture, onnx.load(small.PATH), small.images(40, 10), small.images(40, 11))


@pytest.fixture(scope="session")
def small_mobilenet(densenet121: Architecture) -> Network:
    architecture = replace(densenet121, name="small_mobilenet", preprocessing=small.SPEC)
    return Network(architecture, mobile.build(), small.images(40, 10), small.images(40, 11))


@pytest.fixture(scope="session")
def resnet18() -> Network:
    """A third architecture, which takes one more record."""
    return untrained(
        torchvision_architecture("resnet18", resnet.resnet18, resnet.ResNet18_Weights.IMAGENET1K_V1, "fc"), 8
    )


@pytest.fixture(scope="session")
def real_densenet(densenet121: Architecture, exported: Path, photographs: Path) -> Network:
    """DenseNet-121 with the weights of this test run, on photographs."""
    paths = sorted(photographs.iterdir())
    images = np.concatenate([read_photograph(path, densenet121.preprocessing) for path in paths[:24]])
    return Network(densenet121, onnx.load(exported), images[::2], images[1::2])


@pytest.fixture(scope="session", params=["small_densenet", "real_densenet"])
def any_network(request: pytest.FixtureRequest) -> Network:
    network: Network = request.getfixturevalue(request.param)
    return network


@pytest.fixture(scope="session")
def runtime_python() -> Path:
    """The interpreter that serves, in an environment without torch."""
    python = ROOT / ".venv" / "runtime" / "bin" / "python"
    if not python.exists():
        raise pytest.UsageError(f"{python} does not exist; run the tests by 'make test', which makes it")
    return python


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With more threads, PyTorch and onnxruntime wait for each other, on a busy machine for long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
