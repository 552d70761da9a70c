"""A classifier that is described but never run, for tests of what the server tells about its model."""

from types import SimpleNamespace
from typing import Any, cast

from serve.imaging.preprocess import Preprocessing
from serve.model.classifier import Classifier
from serve.model.labels import Label
from serve.model.postprocess import SOFTMAX, Activation


def stub_classifier(
    name: str = "own", classes: int = 7, ids: bool = True, activation: str = SOFTMAX, variant: str = "fp32"
) -> Classifier:
    """Returns a classifier of so many classes, `label 0` on, which have ids or none."""
    labels = tuple(Label(f"n{index:08}" if ids else None, f"label {index}") for index in range(classes))
    card = {"name": name, "variant": variant}
    model = SimpleNamespace(name=name, input_side=224, class_count=classes, card=card, features=None)
    spec = Preprocessing(256, "bilinear", 224, (0, 0, 0), (1, 1, 1))
    return Classifier(cast(Any, model), spec, labels, cast(Any, None), activation=Activation(activation))
