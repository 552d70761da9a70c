"""Writes what a model says about an image as the members of a JSON object."""

from typing import Any, Final

from serve.model.postprocess import ScoredLabel
from serve.model.stages import Classified

_SIGNIFICANT_DIGITS: Final = 6  # of a probability in an answer


def prediction(classified: Classified, model_name: str, threshold: float = 0.0) -> dict[str, Any]:
    """Returns the JSON answer for one image: the most probable class, the top k in descending order, the model.

    Classes without an id have no `imagenet_id`.

    Args:
        threshold: entries of the top k with a lower probability, as written, are left out.
    """
    entries = [_entry(scored) for scored in classified.scored]
    best = {key: value for key, value in entries[0].items() if key != "index"}
    kept = [entry for entry in entries if entry["probability"] >= threshold]
    return {**best, "top_k": kept, "model": model_name}


def _entry(scored: ScoredLabel) -> dict[str, Any]:
    identifier, name = scored.label.imagenet_id, scored.label.name
    probability = float(f"{scored.probability:.{_SIGNIFICANT_DIGITS}g}")
    if identifier is None:
        return {"index": scored.index, "label": name, "probability": probability}
    return {"index": scored.index, "imagenet_id": identifier, "label": name, "probability": probability}
