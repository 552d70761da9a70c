"""Writes what a model says about an image: as JSON, and as the members of that object."""

import json
import math
from typing import Any, Final

from serve.model.labels import encoded
from serve.model.stages import Classified

_SIGNIFICANT_DIGITS: Final = 6  # of a probability in an answer


def prediction_json(classified: Classified, model_name: str, threshold: float = 0.0) -> str:
    """Returns the JSON answer for one image: the most probable class, the top k in descending order, the model.

    Classes without an id have no `imagenet_id`. The text is put together from that of the labels, which never changes:
    encoding the whole object each time would take a tenth of the event loop's time of an upload.

    Args:
        threshold: entries of the top k with a lower probability, as written, are left out.

    Raises:
        ValueError: a probability is not a finite number.
    """
    best, entries = "", []
    for scored in classified.scored:
        probability = float(f"{scored.probability:.{_SIGNIFICANT_DIGITS}g}")
        if not math.isfinite(probability):
            raise ValueError(f"the probability of class {scored.index} is {probability}")
        members = f'{scored.label.json_members},"probability":{probability}'
        best = best or members
        if probability >= threshold:
            entries.append(f'{{"index":{scored.index},{members}}}')
    return f'{{{best},"top_k":[{",".join(entries)}],"model":{encoded(model_name)}}}'


def prediction(classified: Classified, model_name: str) -> dict[str, Any]:
    """Returns the members of what `prediction_json` writes."""
    return dict(json.loads(prediction_json(classified, model_name)))
