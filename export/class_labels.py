"""Reads the labels of a model's classes: from a file, from class folders, or as a training script saved them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from export.errors import LabelsError
from export.evaluate import class_numbers
from export.known_weights import class_folders
from serve.config.regular_file import read_text
from serve.model.labels import Label, parse_labels, require_labels

IMAGENET_CLASSES: Final = 1000
_MAX_BYTES: Final = 16 * 2**20


def read_labels(place: Path, class_count: int) -> tuple[Label, ...]:
    """Reads a file of labels, see `parse_labels`, or takes the names of a folder's class folders.

    Raises:
        LabelsError: there is not one label for each class, or the file cannot be read; the message says which.
    """
    try:
        if place.is_dir():
            return require_labels([Label(None, name) for name in class_folders(place)], class_count)
        return parse_labels(read_text(place, _MAX_BYTES), place.suffix, class_count)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise LabelsError(
            f"labels {place}: {reason}; --labels takes .txt, .json, .csv or a folder of class folders, "
            "with one label for each class"
        ) from error


def saved_labels(class_to_idx: Mapping[str, int], class_count: int) -> tuple[Label, ...]:
    """Returns the labels in a checkpoint's `class_to_idx`.

    Raises:
        LabelsError: there is not one label for each class.
    """
    try:
        return parse_labels(json.dumps(class_to_idx), ".json", class_count)
    except ValueError as error:
        raise LabelsError(f"class_to_idx in the weights' file: {error}; name others with --labels") from error


def numbers_of(labels: tuple[Label, ...] | None, class_count: int) -> dict[str, int]:
    """Returns the number of each class by its id and by its name, where no other class has the same.

    Args:
        labels: None if the model file has none, and the classes are ImageNet's or nobody knows which.
        class_count: the number of classes.
    """
    if labels is None:
        return class_numbers() if class_count == IMAGENET_CLASSES else {}
    numbers: dict[str, int] = {}
    shared: set[str] = set()
    for number, label in enumerate(labels):
        for name in {label.name, label.imagenet_id or label.name}:
            if numbers.setdefault(name, number) != number:
                shared.add(name)
    return {name: number for name, number in numbers.items() if name not in shared}
