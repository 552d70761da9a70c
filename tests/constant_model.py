"""Writes model files of any number of classes whose logits are the same for every image, without the package onnx."""

import json
import struct
from collections.abc import Sequence
from typing import Any, Final

from tests.tiny_model import CARD

SIDE: Final = 224
_FLOAT: Final = 1  # of onnx.TensorProto


def constant_model(logits: Sequence[float], **entries: Any) -> bytes:
    """Returns a serialized model.

    Args:
        logits: one for each class.
        entries: of the metadata, besides or in place of those that every model file has; None leaves one out.
    """
    card = {**CARD, "name": "constant", "class_count": len(logits), **entries}
    classes = len(logits)
    nodes = [
        _node("GlobalAveragePool", ["input"], "pooled"),
        _node("Flatten", ["pooled"], "colour"),
        _node("Gemm", ["colour", "weight", "bias"], "logits"),
    ]
    constants = [_tensor("weight", [3, classes], [0.0] * 3 * classes), _tensor("bias", [classes], logits)]
    graph = b"".join(
        [
            *(_field(1, node) for node in nodes),
            _field(2, b"constant"),
            *(_field(5, constant) for constant in constants),
            _field(11, _value("input", [3, SIDE, SIDE])),
            _field(12, _value("logits", [classes])),
        ]
    )
    metadata = [
        _field(1, key.encode()) + _field(2, json.dumps(value).encode())
        for key, value in card.items()
        if value is not None
    ]
    return b"".join(
        [_number(1, 10), _field(7, graph), _field(8, _number(2, 20)), *(_field(14, each) for each in metadata)]
    )


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _node(kind: str, inputs: list[str], output: str) -> bytes:
    return b"".join(
        [*(_field(1, each.encode()) for each in inputs), _field(2, output.encode()), _field(4, kind.encode())]
    )


def _tensor(name: str, shape: list[int], values: Sequence[float]) -> bytes:
    raw = struct.pack(f"<{len(values)}f", *values)
    return b"".join(
        [*(_number(1, side) for side in shape), _number(2, _FLOAT), _field(8, name.encode()), _field(9, raw)]
    )


def _value(name: str, shape: list[int]) -> bytes:
    """Describes an input or output `[N, *shape]`."""
    sides = [_field(2, b"N"), *(_number(1, side) for side in shape)]
    kind = _number(1, _FLOAT) + _field(2, b"".join(_field(1, side) for side in sides))
    return _field(1, name.encode()) + _field(2, _field(1, kind))
