"""Brings the keys of a state dict into the form of torchvision's networks, whatever wrapped the network in training."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from torch import Tensor

from export.checkpoints import listed
from export.errors import WeightsError

MAX_CLASSES: Final = 100_000
_FIRST_KEY: Final = "features.conv0.weight"  # of a DenseNet; what stands in front of it, stands in front of all
_WRAPPERS: Final = re.compile(r"^(?:(?:module|model|net|backbone)\.)+")
_COMPILED: Final = "_orig_mod."  # torch.compile puts it in front of what it wraps, a part of the network too
# In DenseNet checkpoints of 2017 the parts of a dense layer are called norm.1, conv.1, norm.2 and conv.2.
_OLD_DENSE_LAYER_KEY: Final = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])(?=\.)")
_LAYER: Final = re.compile(r"features\.denseblock(\d+)\.denselayer\d+\.conv1\.weight")


def network_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames keys to torchvision's: without wrappers' prefixes, and with today's names of a dense layer's parts.

    Scalars and vectors beside the network, such as the weights of a loss or an averaged model's counter, are left out.

    Raises:
        WeightsError: there are two networks.
    """
    plain = {key.replace(_COMPILED, ""): value for key, value in state.items()}
    roots = sorted({key.removesuffix(_FIRST_KEY) for key in plain if f".{key}".endswith(f".{_FIRST_KEY}")})
    if len(roots) > 1:
        raise WeightsError(
            f"hold {len(roots)} networks, in {listed([repr(root) for root in roots])}; save the state dict of one: "
            "torch.save(model.state_dict(), 'mine.pth')"
        )
    root = roots[0] if roots else ""
    made: dict[str, Tensor] = {}
    for key, value in plain.items():
        inside = key.startswith(root) and root
        if root and not inside and value.ndim < 2:
            continue
        short = key[len(root) :] if inside else _WRAPPERS.sub("", key)
        name = _OLD_DENSE_LAYER_KEY.sub(r"\1\2", short)
        if name in made:
            raise WeightsError(f"have two values for {name}; save the state dict of one network")
        made[name] = value
    return made


def with_plain_head(state: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """Renames the Linear of a Sequential head, such as Dropout → Linear or Linear → Sigmoid, to the head itself.

    Args:
        state: with a network's own keys.
        head: what the network's last layer is called, `classifier` for example.

    Raises:
        WeightsError: there is no head, or it has several layers, or no class or too many.
    """
    inner = {key.removeprefix(f"{head}."): value for key, value in state.items() if key.startswith(f"{head}.")}
    linears = [key for key, value in inner.items() if key.endswith("weight") and value.ndim == 2]
    if not linears:
        others = sorted({key.split(".")[0] for key in state if not key.startswith("features.")} - {head})
        found = f" (other layers are {listed(others)})" if others else ""
        raise WeightsError(
            f"have no {head}: there is no Linear {head}.weight{found}, so the network gives features and no classes; "
            "save the state dict of the whole network, with its last layer as model." + head
        )
    name = linears[0].removesuffix("weight")
    if len(linears) > 1 or any(not key.startswith(name) for key in inner):
        layers = sorted({f"{head}.{key.rpartition('.')[0]}" for key in inner})
        raise WeightsError(
            f"have a {head} of several layers, {listed(layers)}, and a state dict does not tell what is between them; "
            f"a {head} of one Linear can be exported, with Dropout before it or Sigmoid after it"
        )
    kept = {key: value for key, value in state.items() if not key.startswith(f"{head}.")}
    weight = inner[f"{name}weight"]
    if not 1 <= len(weight) <= MAX_CLASSES:
        raise WeightsError(f"have {len(weight)} classes in {head}; 1 to {MAX_CLASSES} can be exported")
    return {**kept, f"{head}.weight": weight, f"{head}.bias": inner.get(f"{name}bias", weight.new_zeros(len(weight)))}


def dense_blocks(keys: Iterable[str]) -> tuple[int, ...]:
    """Returns the number of layers in each of a DenseNet's blocks; nothing for other networks."""
    blocks = [int(found[1]) for key in keys if (found := _LAYER.fullmatch(key))]
    return tuple(blocks.count(number) for number in sorted(set(blocks)))
