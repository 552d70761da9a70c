"""Turns logits into the most probable classes: softmax over all classes, top k, labels."""

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
from serve.imaging.normalise import FloatArray

DEFAULT_TOP_K: Final = 5
_MAX_BYTES: Final = 16 * 2**20
# Control characters, surrogates and line breaks: no name has them, and they could steer a terminal or a page.
_FORBIDDEN_CATEGORIES: Final = {"Cc", "Cs", "Zl", "Zp"}


@dataclass(frozen=True)
class Label:
    """One class: its WordNet id, such as `n02099601`, and its name, such as `golden_retriever`."""

    imagenet_id: str
    name: str


@dataclass(frozen=True)
class ScoredLabel:
    """One predicted class: its number, which is its place in the logits, its label and its probability, 0 to 1."""

    index: int
    label: Label
    probability: float


def load_class_index(path: Path, class_count: int) -> tuple[Label, ...]:
    """Reads the label of each logit, in the order of the logits.

    Args:
        path: a JSON object with entries `"0": ["n01440764", "tench"]`, the format of Keras.
        class_count: the number of the model's classes.

    Raises:
        ClassIndexError: the file is unusable, or does not have an entry for each class.
    """
    try:
        entries = json.loads(read_text(path, _MAX_BYTES))
    except OSError as error:
        raise ClassIndexError(f"class index {path}: {error.strerror}; choose another with --class-index") from error
    except (ValueError, RecursionError) as error:
        raise ClassIndexError(f"class index {path}: not JSON; choose another with --class-index") from error
    if not isinstance(entries, dict) or len(entries) != class_count:
        found = f"{len(entries)} entries" if isinstance(entries, dict) else "no JSON object"
        raise ClassIndexError(
            f"class index {path} has {found}, but the model has {class_count} classes; choose the one it was trained "
            "on with --class-index"
        )
    labels = []
    for position in range(class_count):
        match entries.get(str(position)):
            case [str(imagenet_id), str(name)] if _is_safe_name(imagenet_id + name):
                labels.append(Label(imagenet_id, name))
            case other:
                shown = reprlib.repr(other)
                raise ClassIndexError(
                    f'class index {path}: entry "{position}" is {shown}, not ["id", "name"] without control characters'
                )
    return tuple(labels)


def _is_safe_name(text: str) -> bool:
    return text.isprintable() or not any(unicodedata.category(each) in _FORBIDDEN_CATEGORIES for each in text)


def softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    """Returns the probabilities of logits `[classes]`, computed in FP64; shifted by the maximum against overflow."""
    shifted = logits.astype(np.float64) - logits.max()
    powers = np.exp(shifted)
    probabilities: npt.NDArray[np.float64] = powers / powers.sum()
    return probabilities


def top_k(logits: FloatArray, labels: tuple[Label, ...], k: int) -> list[ScoredLabel]:
    """Returns the `k` most probable classes of one image, in descending order, ties in the order of the class index.

    Args:
        logits: FP32 `[classes]`. The softmax is over all of them, not over the `k`.
    """
    probabilities = softmax(logits)
    order = np.argsort(-logits, kind="stable")[:k]
    return [ScoredLabel(int(index), labels[index], float(probabilities[index])) for index in order]
