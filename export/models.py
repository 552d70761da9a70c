"""Which networks can be exported: one record a model, with all that tells it from the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import nn
from torchvision.models import WeightsEnum, densenet
from torchvision.transforms._presets import ImageClassification

from serve.preprocess import Preprocessing


@dataclass(frozen=True)
class Architecture:
    """A torchvision classifier.

    build: the untrained network. default_weights: what is used where the user gives none; its own preset also says how
    pictures are preprocessed.
    """

    name: str
    build: Callable[[], nn.Module]
    default_weights: WeightsEnum

    @property
    def preset(self) -> ImageClassification:
        """torchvision's own preprocessing, the reference for ours."""
        preset = self.default_weights.transforms()
        if not isinstance(preset, ImageClassification):
            raise TypeError(f"{self.name}: torchvision's preset is {type(preset).__name__}, not ImageClassification")
        return preset

    @property
    def preprocessing(self) -> Preprocessing:
        """The same, for the server, read off the preset."""
        preset = self.preset
        (resize,), (crop,) = preset.resize_size, preset.crop_size
        red, green, blue = preset.mean
        red_std, green_std, blue_std = preset.std
        return Preprocessing(
            resize, preset.interpolation.value, crop, (red, green, blue), (red_std, green_std, blue_std)
        )


ARCHITECTURES: Final = {
    "densenet121": Architecture("densenet121", densenet.densenet121, densenet.DenseNet121_Weights.IMAGENET1K_V1),
}

# Published weights by the sha256 of their file: (where they come from, licence). Others are named by their file alone.
KNOWN_WEIGHTS: Final = {
    "88cb0ac96dd096dd68cc33b77fd31514d5e20baebb750dd4c508dfe5434cdcd4": (
        "Keras applications DenseNet-121, ImageNet-1k, by way of GitHub Tony607/webcam-pong, commit f5d75c9",
        "Apache-2.0",
    ),
}
