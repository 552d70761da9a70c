"""torchvision's DenseNet-121 in evaluation mode, for the baseline and for PyTorch as an engine."""

import re
from typing import Any, Final

import torch
from torchvision import models

# torchvision's file has the names of an old release, `norm.1`; torchvision renames them when it reads it.
_OLD_NAME: Final = re.compile(r"(?<=\.)(norm|relu|conv)\.(?=[12]\.)")


def load_densenet(weights: str | None) -> Any:
    """Load weights from a .pth or .safetensors file; without one, torchvision's from torch's cache."""
    if not weights:
        return models.densenet121(weights="IMAGENET1K_V1").eval()
    if weights.endswith(".safetensors"):
        from safetensors.torch import load_file

        state = load_file(weights)
    else:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    model = models.densenet121()
    model.load_state_dict({_OLD_NAME.sub(r"\1", name): value for name, value in state.items()})
    return model.eval()
