"""Hostile inference requests for the Open Inference Protocol, with the answers that each kind may get."""

import base64
import json
import random
import struct
from typing import Any, Final

from tests.hostile.requests import ANY_IMAGE, VALID_IMAGES, Attack, Maker, head, mutated, random_bytes

# A placeholder for the served model's name, replaced when a request is sent.
SERVED: Final = b"@served@"


def tensor_message(rng: random.Random) -> tuple[bytes, bytes]:
    """A valid inference request: its JSON, and the binary data after it."""
    data = VALID_IMAGES["rgb.jpg"]
    if rng.random() < 0.5:
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


def mutated_tensors(rng: random.Random) -> Attack:
    message, tail = tensor_message(rng)
    if rng.random() < 0.5:
        return Attack(infer(mutated(rng, message), tail), ANY_IMAGE | {400})
    return Attack(infer(message, mutated(rng, tail)), ANY_IMAGE | {400})


def inconsistent_tensors(rng: random.Random) -> Attack:
    """Shapes and sizes that do not match the data; the server must not allocate by them."""
    size: Any = rng.choice((-1, 0, 2**31, 2**40, 2**63, 10**300, 1.5, "1", None, [], True))
    tensor: dict[str, Any] = {
        "name": rng.choice(("image", "input", "x", None)),
        "datatype": rng.choice(("FP32", "BYTES", "FP64", 7)),
        "shape": rng.choice(([size], [size, 3, 224, 224], [1, 3, size, 224], size, [[1]], [])),
        "parameters": rng.choice(({"binary_data_size": size}, {}, size)),
        "data": rng.choice(([0.0] * 7, ["A" * 400], [[[]]], size)),
    }
    for key in rng.sample(sorted(tensor), rng.randrange(3)):
        del tensor[key]
    message = json.dumps({"inputs": [tensor] * rng.choice((0, 1, 1, 1, 2))}).encode()
    return Attack(infer(message, random_bytes(rng, 60)), frozenset({400, 413, 415, 422}))


def odd_inference_length(rng: random.Random) -> Attack:
    message, tail = tensor_message(rng)
    length = rng.choice((b"-1", b"1e9", b"9" * 400, b"0x10", b" ", b"1,1", b"%d" % (len(message + tail) + 1), b"7"))
    return Attack(infer(message, tail, length), frozenset({400}))


def nested_json(rng: random.Random) -> Attack:
    opening = rng.choice((b"[", b'{"a":', b'{"inputs":['))
    return Attack(infer(opening * rng.randrange(1, 100_000), b""), frozenset({400}))


def odd_model(rng: random.Random) -> Attack:
    name = rng.choice((b"other", b"..", b"%2e%2e%2f", b"a" * 4000, b"%00", b"%ff", b"%7Bname%7D", b"a%2Fb"))
    return Attack(infer(*tensor_message(rng), model=name), frozenset({404}))


# Weights of the kinds, relative to those in `requests.KINDS`.
KINDS: Final[dict[Maker, int]] = {
    mutated_tensors: 50,
    inconsistent_tensors: 50,
    odd_inference_length: 10,
    nested_json: 5,
    odd_model: 5,
}
