"""The feature maps before a network's mean and last layer: what each place of an image adds to a logit, and embeddings.

The metadata entry `features` of a model file names the outputs of the graph that hold the maps and the last layer's
weights; docs/model-files.md describes it. No further inference is needed for any of this.
"""

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from serve.errors import ModelError
from serve.imaging.normalise import FloatArray

Array = npt.NDArray[Any]
ENTRY: Final = "features"
_LAYOUTS: Final = {"NCHW": 0, "NHWC": 2}  # → the axis of the channels in one image's maps
_REQUIRED: Final = ("maps", "weight")
_OPTIONAL: Final = ("bias", "weight_scale", "scale", "shift")
_LARGEST: Final = 1e9  # a number that FP32 holds, with room for products
_TOLERANCE: Final = 1e-3  # in logits, or of the largest logit if that is more than 1


@dataclass(frozen=True)
class Features:
    """How to read the feature maps of a network that ends in a mean over all places and one linear layer.

    Each place has features `[C]`, in the units of the fp32 network. A class's logit is the mean over all places of
    weights · features, plus the class's bias.

    Attributes:
        output: the graph's output that holds the maps, FP32 or UINT8.
        channel_axis: of the channels in one image's maps.
        scale, shift: features = scale · maps + shift, FP32 `[C]` each.
        weights: of the last layer `[classes, C]`, of the type that the file stores.
        weight_scale: what the weights of a class are multiplied by, FP32 `[classes]`.
        biases: of the last layer, FP32 `[classes]`.
    """

    output: str
    channel_axis: int
    scale: FloatArray
    shift: FloatArray
    weights: Array
    weight_scale: FloatArray
    biases: FloatArray

    @property
    def length(self) -> int:
        """C, the length of an embedding."""
        return len(self.scale)

    def embedding(self, maps: Array) -> FloatArray:
        """Returns the mean of one image's features over all places, FP32 `[C]`.

        Args:
            maps: of one image, `[C, h, w]` or `[h, w, C]`, as the model's output has them.
        """
        places = tuple(axis for axis in range(maps.ndim) if axis != self.channel_axis)
        mean: FloatArray = self.scale * maps.astype(np.float32).mean(places) + self.shift
        return mean

    def class_map(self, maps: Array, index: int) -> FloatArray:
        """Returns what each place adds to the logit of the class `index`, FP32 `[h, w]`; its mean + bias is the logit.

        Args:
            maps: as for `embedding`.
        """
        weights = self.weights[index].astype(np.float32) * self.weight_scale[index]
        places = np.tensordot(maps.astype(np.float32), self.scale * weights, (self.channel_axis, 0))
        added: FloatArray = places + self.shift @ weights
        return added

    def bias(self, index: int) -> float:
        """Returns what the last layer adds to the logit of the class `index`, whatever the image."""
        return float(self.biases[index])

    @classmethod
    def from_entry(cls, entry: Any, outputs: Sequence[str], fetch: Callable[[Sequence[str]], Sequence[Array]]) -> Self:
        """Reads a metadata entry `features`.

        Args:
            entry: its value, whatever the file has there.
            outputs: the names of the graph's outputs, the logits first.
            fetch: returns the outputs of these names for one image.

        Raises:
            ModelError: the entry is wrong, or does not add up to the logits; the message says what to change.
        """
        names = _names(entry, outputs)
        step, zero_point = _number(entry, "step", 1), _number(entry, "zero_point", 0)
        try:
            logits, *values = fetch([outputs[0], *names.values()])
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise _error("names outputs that cannot be read; make them FP32, FP16 or INT8") from error
        if not all(isinstance(value, np.ndarray) for value in values):
            raise _error("names outputs that are no tensors; make them FP32, FP16 or INT8")
        found = dict(zip(names, values, strict=True))
        maps, axis = found["maps"], _LAYOUTS[entry["layout"]]
        if maps.ndim != 4 or maps.dtype not in (np.float32, np.uint8):
            raise _error(
                f"has maps={names['maps']!r}, which is {maps.dtype} {list(maps.shape)}; name an output that is FP32 "
                "or UINT8, of four dimensions"
            )
        classes, channels = logits.shape[1], maps.shape[1 + axis]

        def values_of(key: str, default: int, *shape: int) -> Array:
            value = found.get(key, np.full(shape, default))
            if value.shape != shape or value.dtype.kind not in "fiu" or not np.isfinite(value).all():
                raise _error(f"has {key}={names[key]!r}, which does not hold {' × '.join(map(str, shape))} numbers")
            return value if key == "weight" else value.reshape(-1).astype(np.float32)

        scale = values_of("scale", 1, channels) * np.float32(step)
        features = cls(
            names["maps"],
            axis,
            scale,
            values_of("shift", 0, channels) - scale * np.float32(zero_point),
            values_of("weight", 0, classes, channels),
            values_of("weight_scale", 1, classes, 1),
            values_of("bias", 0, classes),
        )
        features._require_sum(maps[0], logits[0])
        return features

    def _require_sum(self, maps: Array, logits: FloatArray) -> None:
        weights = self.weights.astype(np.float32) * self.weight_scale[:, None]
        difference = np.abs(weights @ self.embedding(maps) + self.biases - logits).max()
        if not difference <= _TOLERANCE * max(1.0, float(np.abs(logits).max())):  # written so that NaN fails
            raise _error(
                f"does not add up to the logits: they are up to {difference:.3g} away; correct it or remove it"
            )


def _names(entry: Any, outputs: Sequence[str]) -> dict[str, str]:
    """Returns the outputs that the entry names, by what it names them for."""
    if not isinstance(entry, dict) or any(key not in entry for key in _REQUIRED):
        raise _error(f"is {reprlib.repr(entry)}; it needs {', '.join(('layout', *_REQUIRED))}")
    if entry.get("layout") not in list(_LAYOUTS):  # a list, because the value may be of any type
        raise _error(f"has layout={reprlib.repr(entry.get('layout'))}; set it to {' or '.join(_LAYOUTS)}")
    names = {key: entry[key] for key in (*_REQUIRED, *_OPTIONAL) if key in entry}
    for key, name in names.items():
        if name not in outputs:
            raise _error(f"has {key}={reprlib.repr(name)}, which is not an output of the graph; make it one")
    return names


def _number(entry: dict[str, Any], key: str, default: int) -> float:
    value = entry.get(key, default)
    if type(value) not in (int, float) or not abs(value) <= _LARGEST:  # written so that NaN fails
        raise _error(f"has {key}={reprlib.repr(value)}; set it to a number, or leave it out")
    return float(value)


def _error(reason: str) -> ModelError:
    return ModelError(f"its metadata entry '{ENTRY}' {reason}")
