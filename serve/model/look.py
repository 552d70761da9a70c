"""Looks inside a model's answer: which places of an image speak for a class, and the image's embedding."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from serve.imaging.decoders import Crop
from serve.imaging.normalise import FloatArray
from serve.imaging.overlay import Box, draw_map
from serve.imaging.png import encode_png
from serve.imaging.preprocess import Preprocessing, crop_box, view_size
from serve.model.features import Array, Features

DEFAULT_VIEW: Final = 448
DEFAULT_OPACITY: Final = 0.5


@dataclass(frozen=True)
class Look:
    """What is wanted of an image besides its classes.

    Attributes:
        embedding: whether the embedding is.
        explain: whether the map of a class is.
        index: the class; None for the most probable one.
        view: the longer side in pixels of the image that the map is drawn over; 0 for no drawing.
        opacity: of the map over the image, 0 to 1.
    """

    embedding: bool = False
    explain: bool = False
    index: int | None = None
    view: int = 0
    opacity: float = DEFAULT_OPACITY


@dataclass(frozen=True)
class Explanation:
    """What each place of an image adds to the logit of a class; `places.mean() + bias` is the logit.

    Attributes:
        index: the class.
        places: FP32 `[h, w]`, equal parts of `box`.
        bias: what is added whatever the image.
        logit: the model's.
        box: left, top, right and bottom of what the model saw, in pixels of the upright image.
        png: the upright image with the map over it, a file; empty if no drawing was wanted.
    """

    index: int
    places: FloatArray
    bias: float
    logit: float
    box: Box
    png: bytes


def look_inside(
    look: Look, features: Features, maps: Array, logits: FloatArray, best: int, crop: Crop | None, spec: Preprocessing
) -> tuple[FloatArray | None, Explanation | None]:
    """Returns the embedding and the explanation of one image, where they are wanted; drawing takes milliseconds.

    Args:
        look: what is wanted.
        features: read the maps.
        maps: of the image, as the model gives them.
        logits: FP32 `[classes]`.
        best: the most probable class.
        crop: what the decoder returned, with the view that `look` asks for; None if there is no image to explain.
        spec: the model's preprocessing.

    Returns:
        The embedding, FP32 `[C]`, and the explanation.
    """
    embedding = features.embedding(maps) if look.embedding else None
    if not look.explain or crop is None:
        return embedding, None
    index = best if look.index is None else look.index
    places, box, png = features.class_map(maps, index), crop_box(crop.size, spec), b""
    if look.view:
        width, height = view_size(crop.size, look.view)
        view = np.frombuffer(crop.view, np.uint8).reshape(height, width, 3)
        png = encode_png(draw_map(view, crop.size, box, places, look.opacity))
    return embedding, Explanation(index, places, features.bias(index), float(logits[index]), box, png)
