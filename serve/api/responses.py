"""Results → the objects of the contract, ready for JSON, and the header that says where the time went.

No error leaves this module.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from serve.errors import RequestError
from serve.model.classifier import Classified, prediction
from serve.problems import problem_of
from serve.scheduling.scheduler import Outcome


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
