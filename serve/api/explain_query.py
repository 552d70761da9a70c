"""Parses the query of `/explain`."""

from collections.abc import Mapping, Sequence
from typing import Final

from serve.api.parameters import MAX_DIGITS, SHOWN_CHARACTERS, UploadQuery, parse_fraction, parse_positive, parse_query
from serve.errors import BadParameter
from serve.imaging.messages import MAX_VIEW
from serve.model.labels import Label
from serve.model.look import DEFAULT_OPACITY, DEFAULT_VIEW, Look

EXPLAIN_PARAMETERS: Final = ("class", "size", "opacity")
MIN_VIEW: Final = 64


def parse_explain_query(query: bytes, names: Mapping[str, Sequence[int]], classes: int, draw: bool) -> UploadQuery:
    """Reads the query of `/explain`.

    Args:
        query: percent-encoded, as in the request's target.
        names: from `class_names`.
        classes: how many classes the model has.
        draw: whether the answer is an image.

    Raises:
        BadParameter: as from `parse_upload_query`.
    """
    given = parse_query(query, EXPLAIN_PARAMETERS)
    index = parse_class(given.get("class", []), names, classes)
    view = parse_size(given.get("size", []))
    opacity = parse_fraction("opacity", given.get("opacity", []), DEFAULT_OPACITY)
    return UploadQuery(1, look=Look(explain=True, index=index, view=view if draw else 0, opacity=opacity))


def parse_size(given: Sequence[str]) -> int:
    """Returns the longer side of the image to draw, in pixels.

    Args:
        given: every `size` of the query.

    Raises:
        BadParameter: `size` is not one whole number from `MIN_VIEW` to `MAX_VIEW`.
    """
    text = ",".join(given) if given else str(DEFAULT_VIEW)
    value = parse_positive(text)
    if value is None or not MIN_VIEW <= value <= MAX_VIEW:
        raise BadParameter(
            f"size={text[:SHOWN_CHARACTERS]!r} is not one whole number of pixels from {MIN_VIEW} to {MAX_VIEW}."
        )
    return value


def class_names(labels: Sequence[Label]) -> Mapping[str, Sequence[int]]:
    """Returns the classes of each label and each id, by number; ImageNet has two classes called crane."""
    names: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        for name in filter(None, {label.name, label.imagenet_id}):
            names.setdefault(name, []).append(index)
    return names


def parse_class(given: Sequence[str], names: Mapping[str, Sequence[int]], classes: int) -> int | None:
    """Returns the number of the class to explain; None for the most probable one.

    Args:
        given: every `class` of the query: an index, an id or a label. A whole number is an index.
        names: from `class_names`.
        classes: how many classes the model has.

    Raises:
        BadParameter: the model has no such class, or several of this label.
    """
    if not given:
        return None
    text = given[0] if len(given) == 1 else ",".join(given)
    shown = f"class={text[:SHOWN_CHARACTERS]!r}"
    if text.isascii() and text.isdigit():
        if len(text) <= MAX_DIGITS and int(text) < classes:
            return int(text)
        raise BadParameter(f"{shown} is not an index from 0 to {classes - 1}.")
    found = names.get(text, ())
    if len(found) > 1:
        raise BadParameter(
            f"{shown} is the label of several classes; give the index, one of {', '.join(map(str, found))}."
        )
    if not found:
        raise BadParameter(
            f"{shown} is no class of this model: neither an index from 0 to {classes - 1} nor an id or a label, which "
            "GET /model?labels=true lists."
        )
    return found[0]
