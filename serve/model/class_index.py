"""Finds the labels of a model: those of the class index, else those of the model's file, else ImageNet's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from serve.config.regular_file import read_text
from serve.config.settings import ROOT
from serve.errors import ClassIndexError, ModelError
from serve.model.labels import Label, parse_labels, require_labels

IMAGENET: Final = ROOT / "imagenet_class_index.json"
_IMAGENET_CLASSES: Final = 1000
_MAX_BYTES: Final = 16 * 2**20


def find_labels(class_index: Path | None, card: Mapping[str, Any], class_count: int) -> tuple[Label, ...]:
    """Returns the label of each logit, in the order of the logits.

    Args:
        class_index: a file as for `parse_labels`; it overrides the labels of the model's file.
        card: the metadata of the model's file, whose `labels` and `ids` are lists of strings.
        class_count: the number of the model's classes.

    Raises:
        ClassIndexError: the file is unusable, or does not have one label for each class.
        ModelError: the metadata does not, and there is no class index.
    """
    if class_index is not None:
        return load_class_index(class_index, class_count)
    if "labels" in card:
        return _labels_of(card, class_count)
    if class_count == _IMAGENET_CLASSES:
        return load_class_index(IMAGENET, class_count)
    raise ModelError(
        f"it has {class_count} classes and no labels; name a file of them with --class-index (one label a line, JSON "
        "or CSV), or put them into the model with 'make export WEIGHTS=PATH LABELS=FILE'"
    )


def load_class_index(path: Path, class_count: int) -> tuple[Label, ...]:
    """Reads a file of labels.

    Args:
        path: its suffix tells its format; see `parse_labels`.
        class_count: the number of the model's classes.

    Raises:
        ClassIndexError: the file is unusable, or does not have one label for each class.
    """
    try:
        return parse_labels(read_text(path, _MAX_BYTES), path.suffix, class_count)
    except OSError as error:
        raise ClassIndexError(f"class index {path}: {error.strerror}; choose another with --class-index") from error
    except ValueError as error:
        raise ClassIndexError(
            f"class index {path}: {error}; correct it, or choose the one that the model was trained on with "
            "--class-index"
        ) from error


def _labels_of(card: Mapping[str, Any], class_count: int) -> tuple[Label, ...]:
    names = _strings(card, "labels")
    ids = _strings(card, "ids") if "ids" in card else [None] * len(names)
    if len(ids) != len(names):
        raise ModelError(f"its metadata has {len(names)} labels but {len(ids)} ids; give each label an id, or none")
    try:
        return require_labels([Label(*each) for each in zip(ids, names, strict=True)], class_count)
    except ValueError as error:
        raise ModelError(
            f"its labels do not fit: {error}; set 'labels' to one name for each class, or name a file of them with "
            "--class-index"
        ) from error


def _strings(card: Mapping[str, Any], entry: str) -> list[str]:
    values = card[entry]
    if not isinstance(values, list) or not all(isinstance(each, str) and each for each in values):
        raise ModelError(f"its metadata has '{entry}' that are not a list of non-empty strings")
    return values
