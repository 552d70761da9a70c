"""Builds response bodies and headers: results, problems and `Server-Timing`."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from serve.errors import RequestError, Unauthorized
from serve.model.classifier import Classified, prediction
from serve.problems import problem_body, problem_from, retry_after
from serve.scheduling.task import Outcome


class JSONLineResponse(JSONResponse):
    """JSON that ends with a line feed, for readers at a terminal."""

    def render(self, content: Any) -> bytes:
        return super().render(content) + b"\n"


def error_response(
    scope: Scope, error: RequestError, headers: Mapping[str, str] | None = None, **members: str
) -> Response:
    """Returns an error as the response to a request, and puts its `reason` into the scope for `RequestLog`.

    Args:
        scope: the request's.
        error: what was wrong.
        headers: besides those that belong to the error's status.
        members: of the problem object, besides the usual ones.
    """
    headers = dict(headers or {})
    if (seconds := retry_after(error)) is not None:
        headers["Retry-After"] = str(seconds)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    problem = {**problem_from(error), **members}
    if "refused" not in scope:  # else the protocol has answered for another reason, and this is never sent
        scope["reason"] = problem["reason"]
    body, media_type = problem_body(scope["path"], problem)
    return Response(body, problem["status"], headers, media_type)


def result_entry(outcome: Outcome[Classified], model_name: str, threshold: float) -> dict[str, Any]:
    """Returns one image's entry in a list of results: its prediction, or the problem of its `RequestError`.

    Any other error is a defect, and is raised. threshold: as for `prediction`.
    """
    if isinstance(outcome.error, RequestError):
        return problem_from(outcome.error)
    return prediction(outcome.unwrap(), model_name, threshold)


def stage_seconds(read_seconds: float, outcomes: Sequence[Outcome[Classified]]) -> dict[str, float]:
    """Returns how long each stage of a request took, in seconds.

    The times of several images are added up, except for `queue`, which is the longest wait among them.
    """
    stages = {"read": read_seconds, "decode": 0.0, "preprocess": 0.0, "queue": 0.0, "infer": 0.0}
    for outcome in outcomes:
        stages["queue"] = max(stages["queue"], outcome.queued_seconds)
        if outcome.result is not None:
            for stage, seconds in outcome.result.seconds.items():
                stages[stage] += seconds
    return stages


def server_timing(stages: Mapping[str, float]) -> str:
    """Returns the value of `Server-Timing` (W3C), in milliseconds."""
    return ", ".join(f"{stage};dur={seconds * 1000:.3f}" for stage, seconds in stages.items())
