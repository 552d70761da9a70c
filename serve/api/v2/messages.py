"""Reads inference requests and writes inference responses of the Open Inference Protocol.

https://github.com/kserve/open-inference-protocol, with Triton's binary tensor and classification extensions. A request
has one tensor: `input` FP32 `[N, 3, S, S]`, normalised, or `image` BYTES `[N]`, encoded images (base64 in JSON). A
response has `logits` FP32 `[N, classes]` or, on request, the most probable classes as BYTES `[N, k]`, each
`logit:index:label`; and on request `embedding` FP32 `[N, C]`, if the model has feature maps.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from serve.api.v2.outputs import EMBEDDING, LOGITS, RequestedOutput, read_outputs, write_output
from serve.api.v2.tensors import IMAGE, INPUT, quote, read_floats, read_images, read_shape
from serve.errors import BadTensor, UploadTooLarge
from serve.imaging.formats import Data
from serve.model.labels import Label

VERSION: Final = "1"  # of the model; there is one
LENGTH_HEADER: Final = "Inference-Header-Content-Length"
# Reading JSON holds the GIL, and so stops the event loop, for a time that grows with the number of values. The limits
# allow `MAX_JSON_ROWS` tensors and `_MAX_OTHER_VALUES` other values. The 150,528 values of one image take 3 MB.
MAX_JSON_BYTES: Final = 8 * 2**20
MAX_JSON_ROWS: Final = 4
_MAX_OTHER_VALUES: Final = 1000
_MAX_ID_CHARACTERS: Final = 1024


@dataclass(frozen=True)
class Signature:
    """A model's name, input side S and labels, the most rows of a request, and the length of an embedding, if any."""

    model: str
    side: int
    labels: tuple[Label, ...]
    max_rows: int
    embedding: int = 0

    @property
    def outputs(self) -> dict[str, int]:
        """The name of each output, and how many values a row of it has."""
        return {LOGITS: len(self.labels)} | ({EMBEDDING: self.embedding} if self.embedding else {})

    def metadata(self) -> dict[str, Any]:
        """Returns the protocol's model metadata, in which -1 stands for any number."""
        return {
            "name": self.model,
            "versions": [VERSION],
            "platform": "onnxruntime_onnx",
            "inputs": [
                {"name": INPUT, "datatype": "FP32", "shape": [-1, 3, self.side, self.side]},
                {"name": IMAGE, "datatype": "BYTES", "shape": [-1]},
            ],
            "outputs": [
                {"name": name, "datatype": "FP32", "shape": [-1, length]} for name, length in self.outputs.items()
            ],
        }


@dataclass(frozen=True)
class InferenceRequest:
    """A checked request.

    Attributes:
        id: the client's name for the request.
        rows: FP32 `[1, 3, S, S]` each; empty if the request has images.
        images: encoded files; empty if the request has rows.
        outputs: what is to be returned, at least one.
    """

    id: str | None
    rows: list[npt.NDArray[np.float32]]
    images: list[bytes]
    outputs: list[RequestedOutput]

    @property
    def embedding(self) -> bool:
        """Whether embeddings are wanted."""
        return any(output.name == EMBEDDING for output in self.outputs)


def parse_request(length_header: str | None, body: Data, signature: Signature) -> InferenceRequest:
    """Reads a request's body.

    Args:
        length_header: the value of `LENGTH_HEADER`, the length of the JSON at the start of the body.
        body: the whole body.
        signature: what the model takes.

    Raises:
        BadTensor: the request is malformed, or the model takes no such tensor.
        TooManyFiles: it has more rows than the limit.
        UploadTooLarge: its JSON is larger than the limit.
    """
    message, tail = _split(length_header, body, signature)
    tensor = _only_tensor(message, "inputs")
    name = tensor.get("name")
    rows: list[npt.NDArray[np.float32]] = []
    encoded: list[bytes] = []
    if name == INPUT:
        shape = read_shape(tensor, INPUT, "FP32", (3, signature.side, signature.side), signature.max_rows)
        rows = list(read_floats(tensor, shape, tail)[:, None])
    elif name == IMAGE:
        (count,) = read_shape(tensor, IMAGE, "BYTES", (), signature.max_rows)
        encoded = read_images(tensor, count, tail)
    else:
        raise BadTensor(f"There is no input {quote(name)}; the model takes '{INPUT}' or '{IMAGE}'.")
    outputs = read_outputs(message, signature.outputs)
    identifier = message.get("id")
    if not (identifier is None or (isinstance(identifier, str) and len(identifier) <= _MAX_ID_CHARACTERS)):
        raise BadTensor(f"The request's id is not a string of at most {_MAX_ID_CHARACTERS} characters.")
    return InferenceRequest(identifier, rows, encoded, outputs)


def write_response(
    request: InferenceRequest, values: Mapping[str, npt.NDArray[np.float32]], signature: Signature
) -> tuple[bytes, int | None]:
    """Returns a response's body, and the length of its JSON if binary tensors follow it.

    Args:
        request: what the client asked for.
        values: of each output, FP32 `[N, ...]`, at least those that were asked for.
        signature: the model's.

    Raises:
        BadTensor: the values are not finite, which only extreme values of `input` cause.
    """
    written = [write_output(output, values[output.name], signature.labels) for output in request.outputs]
    identifier = {} if request.id is None else {"id": request.id}
    response = {**identifier, "model_name": signature.model, "model_version": VERSION}
    outputs = ", ".join(text for text, _ in written)
    head = f'{json.dumps(response).removesuffix("}")}, "outputs": [{outputs}]}}'.encode()
    is_binary = any(output.binary for output in request.outputs)
    return b"".join([head, *(raw for _, raw in written)]), len(head) if is_binary else None


def _split(length_header: str | None, body: Data, signature: Signature) -> tuple[dict[str, Any], memoryview]:
    """Returns the JSON object at the start of a body, and the bytes after it."""
    length = len(body)
    if length_header is not None:
        if not (length_header.isascii() and length_header.isdigit() and len(length_header) <= 15):
            raise BadTensor(f"{LENGTH_HEADER}: {quote(length_header)} is not a number of bytes.")
        length = int(length_header)
        if length > len(body):
            raise BadTensor(f"{LENGTH_HEADER} is {length}, but the body has {len(body)} bytes.")
    if length > MAX_JSON_BYTES:
        raise UploadTooLarge(
            f"The request has {length} bytes of JSON; the limit is {MAX_JSON_BYTES} bytes, and binary tensors are not "
            "counted."
        )
    brackets = body.count(b"[", 0, length) + body.count(b"{", 0, length)
    most = MAX_JSON_ROWS * (1 + 3 + 3 * signature.side) + _MAX_OTHER_VALUES
    if brackets > most:
        raise BadTensor(f"The request has {brackets} lists and objects; the limit is {most}.")
    values = body.count(b",", 0, length)
    most = MAX_JSON_ROWS * 3 * signature.side**2 + _MAX_OTHER_VALUES
    if values > most:
        raise UploadTooLarge(
            f"The request has more than {most} values in JSON, the limit; binary tensors are not counted."
        )
    keys = body.count(b":", 0, length)
    if keys > _MAX_OTHER_VALUES:
        raise BadTensor(f"The request has {keys} keys; the limit is {_MAX_OTHER_VALUES}.")
    try:
        # Decoded here, because json.loads would let surrogates through, at the cost of an exception each.
        text = str(memoryview(body)[:length], "utf-8-sig")
        message = json.loads(text, parse_float=_float, parse_int=_int)
    except (ValueError, RecursionError) as error:  # ValueError also covers text that is not UTF-8
        raise BadTensor("The request is not JSON.") from error
    if not isinstance(message, dict):
        raise BadTensor("The request is not a JSON object.")
    return message, memoryview(body)[length:]


# A number of a few bytes can take microseconds. Python functions let other threads run between two numbers; `float` and
# `int` themselves would hold the GIL until all of them were read.
def _float(text: str) -> float:
    return float(text)


def _int(text: str) -> int:
    return int(text)


def _only_tensor(message: dict[str, Any], key: str) -> dict[str, Any]:
    tensors = message.get(key)
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise BadTensor(f"'{key}' is not a list of one tensor.")
    tensor: dict[str, Any] = tensors[0]
    return tensor
