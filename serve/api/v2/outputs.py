"""The outputs of the Open Inference Protocol: reads which ones a request asks for, and writes their tensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from serve.api.v2.tensors import LENGTH, quote, read_parameters
from serve.errors import BadTensor
from serve.model.labels import Label
from serve.model.postprocess import ranking

LOGITS: Final = "logits"
EMBEDDING: Final = "embedding"
_SIGNIFICANT_DIGITS: Final = 9  # enough to restore the same FP32


@dataclass(frozen=True)
class RequestedOutput:
    """An output that a request asks for.

    Attributes:
        name: of the output.
        binary: whether its tensor is binary in the response.
        classes: k of the classification extension, of the logits; 0 asks for the values themselves.
    """

    name: str
    binary: bool
    classes: int = 0


def read_outputs(message: dict[str, Any], known: Mapping[str, int]) -> list[RequestedOutput]:
    """Returns the outputs that a request asks for, each once at most; without any, the logits.

    Args:
        message: the request.
        known: the names of the model's outputs, and how many values a row of each has.

    Raises:
        BadTensor: one is not known, or asked for in a way that is not allowed.
    """
    binary = _flag(read_parameters(message, "the request"), "binary_data_output")
    wanted = message.get("outputs")
    if wanted in (None, []):
        return [RequestedOutput(LOGITS, binary)]
    if not isinstance(wanted, list) or not all(isinstance(output, dict) for output in wanted):
        raise BadTensor("'outputs' is not a list of tensors.")
    names = [output.get("name") for output in wanted]
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise BadTensor(f"There is no output {quote(name)}; the model returns {' and '.join(map(repr, known))}.")
        if names.count(name) > 1:
            raise BadTensor(f"'outputs' has {quote(name)} more than once.")
    return [_requested_output(output, binary, known[LOGITS]) for output in wanted]


def _requested_output(output: dict[str, Any], binary: bool, class_count: int) -> RequestedOutput:
    """Returns an output of a known name; binary: whether it is unless it says otherwise."""
    name = output["name"]
    parameters = read_parameters(output, f"'{name}'")
    classes = parameters.get("classification", 0)
    most = class_count if name == LOGITS else 0
    if type(classes) is not int or not 0 <= classes <= most:
        allowed = f"is not a whole number from 1 to {most}" if most else f"is only for '{LOGITS}'"
        raise BadTensor(f"classification={quote(classes)} {allowed}.")
    return RequestedOutput(name, _flag(parameters, "binary_data", binary), classes)


def write_output(
    output: RequestedOutput, values: npt.NDArray[np.float32], labels: tuple[Label, ...]
) -> tuple[str, bytes]:
    """Returns an output's JSON object and its binary tensor, which is empty if the object has the values.

    Args:
        output: what was asked for.
        values: FP32 `[N, ...]`.
        labels: of all classes.

    Raises:
        BadTensor: the values are not finite, which only extreme values of `input` cause.
    """
    if not np.isfinite(values).all():
        raise BadTensor(f"The model's {output.name} for these values are not finite.")
    tensor: dict[str, Any] = {"name": output.name, "datatype": "FP32", "shape": list(values.shape)}
    entries: list[str] = []
    if output.classes:
        tensor |= {"datatype": "BYTES", "shape": [len(values), output.classes]}
        entries = [entry for row in values for entry in _ranked(row, output.classes, labels)]
    if output.binary:
        encoded = [entry.encode() for entry in entries]
        raw = b"".join(LENGTH.pack(len(each)) + each for each in encoded) or values.astype("<f4").tobytes()
        return json.dumps({**tensor, "parameters": {"binary_data_size": len(raw)}}), raw
    # Inserted as text: json.dumps would hold the GIL until the last value, 0.16 s for 32 images of 20,000 classes.
    if entries:
        texts = [json.dumps(entry) for entry in entries]
    else:
        texts = [f"{value:.{_SIGNIFICANT_DIGITS}g}" for value in values.ravel().tolist()]
    return f'{json.dumps(tensor).removesuffix("}")}, "data": [{", ".join(texts)}]}}', b""


def _flag(parameters: dict[str, Any], key: str, default: bool = False) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise BadTensor(f"{key}={quote(value)} is neither true nor false.")
    return value


def _ranked(logits: npt.NDArray[np.float32], k: int, labels: tuple[Label, ...]) -> list[str]:
    """Returns the top k as Triton writes them, `logit:index:label`; equal logits stay in the order of the classes."""
    order = ranking(logits, k).tolist()
    return [f"{logits[index]:.{_SIGNIFICANT_DIGITS}g}:{index}:{labels[index].name}" for index in order]
