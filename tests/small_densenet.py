"""A small DenseNet for the tests of int8, and images that it can classify.

    python -m tests.small_densenet     writes tests/data/small_densenet.onnx again (in the export environment)

It resembles a trained network: BatchNorm scales have both signs, differ by an order of magnitude and are sometimes 0;
shifts put ReLU thresholds inside, below and above a channel's range; all ten classes occur. Everything is drawn by
numpy and rounded, so that every CPU makes the same network.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from serve.imaging.normalise import to_input
from serve.imaging.preprocess import Preprocessing

if TYPE_CHECKING:
    from torchvision.models.densenet import DenseNet

Array = npt.NDArray[Any]

PATH = Path(__file__).parent / "data" / "small_densenet.onnx"
SIDE = 64
CLASSES = 10
SPEC = Preprocessing(SIDE, "bilinear", SIDE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_STATISTICS_SEED = 5  # of the images that the BatchNorm statistics are taken from


def draw(count: int, seed: int) -> list[Image.Image]:
    """Draw smooth patterns, one of each kind in turn; images of a kind share colours and shapes, like a class."""
    kinds = np.random.default_rng(0).normal(128, 70, (CLASSES, 5, 5, 3))
    noise = np.random.default_rng(seed)
    grids = (kinds[number % CLASSES] + noise.normal(0, 30, (5, 5, 3)) for number in range(count))
    return [Image.fromarray(np.clip(np.rint(_smooth(grid)), 0, 255).astype(np.uint8)) for grid in grids]


def images(count: int, seed: int) -> Array:
    """Return the images of `draw`, preprocessed as by the server, FP32 `[count, 3, SIDE, SIDE]`."""
    return np.concatenate([to_input(image, SPEC) for image in draw(count, seed)])


def _smooth(grid: Array) -> Array:
    """Enlarge `[5, 5, 3]` to `[SIDE, SIDE, 3]`, bilinear."""
    places = np.linspace(0, len(grid) - 1, SIDE)
    low = np.minimum(places.astype(int), len(grid) - 2)
    share = places - low
    rows = grid[low] * (1 - share[:, None, None]) + grid[low + 1] * share[:, None, None]
    result: Array = rows[:, low] * (1 - share[:, None]) + rows[:, low + 1] * share[:, None]
    return result


def build(num_classes: int = CLASSES) -> "DenseNet":
    """Build the PyTorch network with random weights."""
    from torchvision.models.densenet import DenseNet

    return DenseNet(growth_rate=8, block_config=(3, 4), num_init_features=16, bn_size=2, num_classes=num_classes)


def network() -> "DenseNet":
    """Build the PyTorch network with its weights, in inference mode."""
    import torch
    from torch import nn

    made = build()
    random = np.random.default_rng(1)

    def fill(parameter: torch.Tensor, values: Array) -> None:
        parameter.data = torch.from_numpy(rounded(values))

    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            shape = tuple(module.weight.shape)
            fill(module.weight, random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape))
        elif isinstance(module, nn.BatchNorm2d):
            count = module.num_features
            scale = np.exp(random.normal(-0.3, 0.7, count)) * random.choice([1, -1], count, p=[0.75, 0.25])
            fill(module.weight, np.where(random.random(count) < 0.08, 0, scale))
            fill(module.bias, random.normal(0.2, 0.7, count))
            module.momentum = None  # the plain average over all batches
    seen = torch.from_numpy(images(40, _STATISTICS_SEED)).double()
    with torch.no_grad():
        made.double().train()(seen)
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                fill(module.running_mean, module.running_mean.numpy())
                fill(module.running_var, module.running_var.numpy())
        made.eval()
        features = nn.functional.relu(made.features(seen)).mean((2, 3)).numpy()
    # The class is the kind whose images have the nearest features.
    kinds = np.arange(len(features)) % CLASSES
    usual = np.stack([features[kinds == kind].mean(0) for kind in range(CLASSES)])
    fill(made.classifier.weight, 0.75 * usual)
    fill(made.classifier.bias, 0.375 * (np.mean(usual**2) * usual.shape[1] - (usual**2).sum(1)))
    return made.float()


def rounded(values: Array) -> Array:
    """Round to three digits, so that adding in another order changes nothing in double precision."""
    return np.array([float(f"{value:.3g}") for value in values.ravel()]).reshape(values.shape)


def batches(array: Array) -> Iterator[Array]:
    """Yield one image at a time, FP32 `[1, 3, SIDE, SIDE]`."""
    return (image[None] for image in array)


if __name__ == "__main__":
    from export.torch_to_onnx import export_graph

    PATH.write_bytes(export_graph(network(), SIDE).SerializeToString(deterministic=True))
