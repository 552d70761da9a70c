"""torchvision's DenseNet-121 in evaluation mode, for the old way and for PyTorch as an engine alike."""

import re
from typing import Any, Final

import torch
from torchvision import models

# torchvision's own file still has the names of an old release, `norm.1`; torchvision renames them as it reads it.
_OLD_NAME: Final = re.compile(r"(?<=\.)(norm|relu|conv)\.(?=[12]\.)")


def load_densenet(weights: str | None) -> Any:
    """With the weights of a file, .pth or .safetensors, or else with torchvision's own from torch's cache."""
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
