"""Logits → softmax over all classes → top-k → labels.

Errors that leave here: `ClassIndexError`, from loading the labels.
"""

import json
import reprlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from serve.config.regular_file import read_text
from serve.errors import ClassIndexError

DEFAULT_TOP_K: Final = 5
_MAX_BYTES: Final = 16 * 2**20
# Control characters, halves of characters and line breaks: no name has them, and they steer terminals and pages.
_IN_NO_NAME: Final = {"Cc", "Cs", "Zl", "Zp"}


@dataclass(frozen=True)
class Label:
    """One class: its WordNet id, such as `n02099601`, and its name, such as `golden_retriever`."""

    imagenet_id: str
    name: str


@dataclass(frozen=True)
class Scored:
    """One class of an answer with its probability, 0 to 1."""

    label: Label
    probability: float


def load_class_index(path: Path, class_count: int) -> tuple[Label, ...]:
    """The label of each logit, in the logits' order.

    path: a JSON object of `"0": ["n01440764", "tench"]` entries, as `imagenet_class_index.json` has been since Keras.
    class_count: the model's. Raises `ClassIndexError` where the two do not fit.
    """
    try:
        entries = json.loads(read_text(path, _MAX_BYTES))
    except OSError as error:
        raise ClassIndexError(f"class index {path}: {error.strerror}; name another with --class-index") from error
    except (ValueError, RecursionError) as error:
        raise ClassIndexError(f"class index {path}: not JSON; name another with --class-index") from error
    if not isinstance(entries, dict) or len(entries) != class_count:
        found = f"{len(entries)} entries" if isinstance(entries, dict) else "no JSON object"
        raise ClassIndexError(
            f"class index {path} has {found}, but the model has {class_count} classes; name the one it was trained on "
            "with --class-index"
        )
    labels = []
    for position in range(class_count):
        match entries.get(str(position)):
            case [str(imagenet_id), str(name)] if _can_be_shown(imagenet_id + name):
                labels.append(Label(imagenet_id, name))
            case other:
                shown = reprlib.repr(other)
                raise ClassIndexError(
                    f'class index {path}: entry "{position}" is {shown}, not ["id", "name"] without control characters'
                )
    return tuple(labels)


def _can_be_shown(text: str) -> bool:
    return text.isprintable() or not any(unicodedata.category(each) in _IN_NO_NAME for each in text)


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """`[classes]` → probabilities `[classes]`, in float64, shifted by the maximum so that nothing overflows."""
    shifted = logits.astype(np.float64) - logits.max()
    powers = np.exp(shifted)
    probabilities: npt.NDArray[np.float64] = powers / powers.sum()
    return probabilities


def top_k(logits: npt.NDArray[np.float32], labels: tuple[Label, ...], k: int) -> list[Scored]:
    """The `k` most probable classes of one picture, in falling order; equal ones in the class index's order.

    logits: FP32 `[classes]`. Probabilities are the softmax over all classes, not over the `k`.
    """
    probabilities = softmax(logits)
    order = np.argsort(-logits, kind="stable")[:k]
    return [Scored(labels[index], float(probabilities[index])) for index in order]
