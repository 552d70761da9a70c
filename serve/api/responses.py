"""Builds response bodies and headers: results, problems and `Server-Timing`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from starlette.responses import Response

from serve.api.exchange import Exchange
from serve.errors import MethodNotAllowed, RequestError, Unauthorized
from serve.imaging.normalise import FloatArray
from serve.model.labels import Label
from serve.model.look import Explanation
from serve.model.prediction import prediction_json
from serve.model.stages import Classified
from serve.problems import problem_body, problem_from, retry_after
from serve.scheduling.task import Outcome

_CROP_DIGITS: Final = 2  # decimals of the crop's edges, in pixels

_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class JSONLineResponse(Response):
    """JSON that ends with a line feed, for readers at a terminal."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return _encode(content).encode() + b"\n"


def error_response(
    exchange: Exchange, error: RequestError, headers: Mapping[str, str] | None = None, **members: str
) -> Response:
    """Returns an error as the response to a request, and records its `reason`.

    Args:
        exchange: the request.
        error: what was wrong.
        headers: besides those that belong to the error's status.
        members: of the problem object, besides the usual ones.
    """
    headers = {**exchange.timing, **(headers or {})}
    if (seconds := retry_after(error)) is not None:
        headers["Retry-After"] = str(seconds)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    problem = {**problem_from(error), **members}
    if not exchange.record.closed:
        exchange.record.reason = problem["reason"]
    body, media_type = problem_body(exchange.scope["path"], problem)
    return Response(body, problem["status"], headers, media_type)


def _entry(filename: str, outcome: Outcome[Classified], model_name: str, threshold: float) -> str:
    """Returns one image's entry in a list of results: its prediction, or the problem of its `RequestError`.

    Any other error is a defect, and is raised. threshold: as for `prediction_json`.
    """
    if isinstance(outcome.error, RequestError):
        return _encode({"filename": filename, **problem_from(outcome.error)})
    return f'{{"filename":{_encode(filename)},{_answer(outcome.unwrap(), model_name, threshold)[1:]}'


def _answer(classified: Classified, model_name: str, threshold: float) -> str:
    """Returns a prediction, with the embedding if it was wanted."""
    answer = prediction_json(classified, model_name, threshold)
    if classified.embedding is None:
        return answer
    return f'{answer[:-1]},"embedding":{_encode(_numbers(classified.embedding))}}}'


def explanation_body(explanation: Explanation, labels: Sequence[Label]) -> bytes:
    """Returns the body of an explanation in JSON, which ends with a line feed.

    Args:
        explanation: of one image.
        labels: of all classes.
    """
    left, top, right, bottom = (round(edge, _CROP_DIGITS) for edge in explanation.box)
    answer = {
        "index": explanation.index,
        "label": labels[explanation.index].name,
        "map": [_numbers(row) for row in explanation.places],
        "mean": _number(explanation.places.mean(dtype=np.float64)),
        "bias": _number(explanation.bias),
        "logit": _number(explanation.logit),
        "crop": {"left": left, "top": top, "right": right, "bottom": bottom},
    }
    return _encode(answer).encode() + b"\n"


def _numbers(values: FloatArray) -> list[float]:
    """Returns FP32 values as the shortest decimals that restore them."""
    return [float(str(value)) for value in values]


def _number(value: float | np.floating[Any]) -> float:
    return float(str(np.float32(value)))


def upload_body(
    outcomes: Sequence[Outcome[Classified]], filenames: Sequence[str] | None, model_name: str, threshold: float
) -> bytes:
    """Returns the body of an answer to an upload: JSON that ends with a line feed.

    Args:
        outcomes: of the images.
        filenames: of all images, which then get a list of results; None for one prediction.
        model_name: the model's.
        threshold: as for `prediction_json`.

    Raises:
        Exception: a defect or, without a list, whatever the outcome has in place of a result.
    """
    if filenames is None:
        return f"{_answer(outcomes[0].unwrap(), model_name, threshold)}\n".encode()
    # Encoded one by one, because in a string one emoji makes every character take four bytes.
    entries = (
        _entry(filename, outcome, model_name, threshold).encode()
        for filename, outcome in zip(filenames, outcomes, strict=True)
    )
    return b'{"results":[' + b",".join(entries) + b"]}\n"


def server_timing(stages: Mapping[str, float]) -> str:
    """Returns the value of `Server-Timing` (W3C), in milliseconds."""
    return ", ".join(f"{stage};dur={seconds * 1000:.3f}" for stage, seconds in stages.items())
