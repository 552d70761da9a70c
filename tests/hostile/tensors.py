"""Inference requests that mean harm, for the Open Inference Protocol: kind → how one is made, what may be answered."""

import base64
import json
import random
import struct
from typing import Any, Final

from tests.hostile.requests import ANY_PICTURE, SOUND, Attack, Maker, head, mutated, some

# Stands for the name of the model that is being served, which is put in its place when a request is sent.
SERVED: Final = b"@served@"


def tensor_message(chance: random.Random) -> tuple[bytes, bytes]:
    """A sound inference request for the Open Inference Protocol: its JSON, and the bytes behind it."""
    data = SOUND["rgb.jpg"]
    if chance.random() < 0.5:
        encoded = base64.b64encode(data).decode()
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [encoded]}
        return json.dumps({"inputs": [tensor]}).encode(), b""
    binary = {"binary_data_size": len(data) + 4}
    announced = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": binary}
    return json.dumps({"inputs": [announced]}).encode(), struct.pack("<I", len(data)) + data


def infer(message: bytes, tail: bytes, length: bytes = b"", model: bytes = SERVED) -> bytes:
    more = b"Inference-Header-Content-Length: %s\r\n" % (length or b"%d" % len(message))
    more += b"Content-Length: %d\r\n" % len(message + tail)
    return head(target=b"/v2/models/" + model + b"/infer", more=more) + message + tail


def mutated_tensors(chance: random.Random) -> Attack:
    message, tail = tensor_message(chance)
    if chance.random() < 0.5:
        return Attack(infer(mutated(chance, message), tail), ANY_PICTURE | {400})
    return Attack(infer(message, mutated(chance, tail)), ANY_PICTURE | {400})


def tensors_that_lie(chance: random.Random) -> Attack:
    """Shapes and sizes of what is not there, which nothing may be allocated by."""
    size: Any = chance.choice((-1, 0, 2**31, 2**40, 2**63, 10**300, 1.5, "1", None, [], True))
    tensor: dict[str, Any] = {
        "name": chance.choice(("image", "input", "x", None)),
        "datatype": chance.choice(("FP32", "BYTES", "FP64", 7)),
        "shape": chance.choice(([size], [size, 3, 224, 224], [1, 3, size, 224], size, [[1]], [])),
        "parameters": chance.choice(({"binary_data_size": size}, {}, size)),
        "data": chance.choice(([0.0] * 7, ["A" * 400], [[[]]], size)),
    }
    for key in chance.sample(sorted(tensor), chance.randrange(3)):
        del tensor[key]
    message = json.dumps({"inputs": [tensor] * chance.choice((0, 1, 1, 1, 2))}).encode()
    return Attack(infer(message, some(chance, 60)), frozenset({400, 413, 415, 422}))


def odd_inference_length(chance: random.Random) -> Attack:
    message, tail = tensor_message(chance)
    length = chance.choice((b"-1", b"1e9", b"9" * 400, b"0x10", b" ", b"1,1", b"%d" % (len(message + tail) + 1), b"7"))
    return Attack(infer(message, tail, length), frozenset({400}))


def nested_json(chance: random.Random) -> Attack:
    opening = chance.choice((b"[", b'{"a":', b'{"inputs":['))
    return Attack(infer(opening * chance.randrange(1, 100_000), b""), frozenset({400}))


def odd_model(chance: random.Random) -> Attack:
    name = chance.choice((b"other", b"..", b"%2e%2e%2f", b"a" * 4000, b"%00", b"%ff", b"%7Bname%7D", b"a%2Fb"))
    return Attack(infer(*tensor_message(chance), model=name), frozenset({404}))


# How often each kind comes, beside those of `tests.hostile.requests`.
KINDS: Final[dict[Maker, int]] = {
    mutated_tensors: 50,
    tensors_that_lie: 50,
    odd_inference_length: 10,
    nested_json: 5,
    odd_model: 5,
}
