"""Results → the objects of the contract, ready for JSON, and the header that says where the time went.

No error leaves this module.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from serve.classifier import Classified
from serve.errors import RequestError
from serve.problems import problem_of
from serve.scheduler import Outcome

_SIGNIFICANT_DIGITS: Final = 6


def prediction(classified: Classified, model_name: str) -> dict[str, Any]:
    """One picture's answer: its most probable class, the top k in falling order, and the model that says so."""
    entries = [
        {
            "imagenet_id": entry.label.imagenet_id,
            "label": entry.label.name,
            "probability": float(f"{entry.probability:.{_SIGNIFICANT_DIGITS}g}"),
        }
        for entry in classified.scored
    ]
    return {**entries[0], "top_k": entries, "model": model_name}


def prediction_or_problem(outcome: Outcome[Classified], model_name: str) -> dict[str, Any]:
    """One picture's place in a list of results; raises what is no `RequestError`, because that is a defect."""
    if isinstance(outcome.error, RequestError):
        return problem_of(outcome.error)
    return prediction(outcome.unwrap(), model_name)


def stages_of(read_seconds: float, outcomes: Sequence[Outcome[Classified]]) -> dict[str, float]:
    """Stage → seconds of one request.

    Of several pictures the times are added up, but for `queue`, which is how long the last of them waited.
    """
    stages = {"read": read_seconds, "decode": 0.0, "preprocess": 0.0, "queue": 0.0, "infer": 0.0}
    for outcome in outcomes:
        stages["queue"] = max(stages["queue"], outcome.queued_seconds)
        if outcome.result is not None:
            for stage, seconds in outcome.result.seconds.items():
                stages[stage] += seconds
    return stages


def server_timing(stages: Mapping[str, float]) -> str:
    """The value of `Server-Timing` (W3C), milliseconds."""
    return ", ".join(f"{stage};dur={seconds * 1000:.3f}" for stage, seconds in stages.items())
