"""The Open Inference Protocol's tensors: what a message says of one and what it holds → arrays and pictures.

Nothing is allocated by what a message claims: sizes are compared with the bytes that are there.
Errors that leave here: `BadTensor`, `TooManyFiles`.
"""

import base64
import binascii
import contextlib
import json
import math
import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from serve.errors import BadTensor, TooManyFiles

INPUT: Final = "input"
IMAGE: Final = "image"
# Of an element of a binary BYTES tensor, ahead of it.
LENGTH: Final = struct.Struct("<I")
_SHOWN_CHARACTERS: Final = 40
_ENCODER: Final = json.JSONEncoder()


def require_datatype(tensor: dict[str, Any], name: str, datatype: str) -> None:
    """Raise `BadTensor` unless the tensor says it is of this datatype."""
    if tensor.get("datatype") != datatype:
        raise BadTensor(f"The datatype of '{name}' is {shown(tensor.get('datatype'))}; the model takes {datatype}.")


def shape_of(tensor: dict[str, Any], name: str, row: tuple[int, ...], max_rows: int) -> tuple[int, ...]:
    """`(N, *row)`, as the tensor says it. max_rows: of N, beyond which it is `TooManyFiles`."""
    shape = tensor.get("shape")
    wanted = ", ".join(["N", *map(str, row)])
    is_shape = isinstance(shape, list) and all(type(side) is int for side in shape)
    if not is_shape or len(shape) != 1 + len(row) or tuple(shape[1:]) != row or shape[0] < 1:  # type: ignore[arg-type,index]
        raise BadTensor(f"The shape of '{name}' is {shown(shape)}; the model takes [{wanted}] with N at least 1.")
    if shape[0] > max_rows:  # type: ignore[index]
        raise TooManyFiles(f"The shape of '{name}' is {shown(shape)}; the limit is {max_rows} rows a request.")
    return tuple(shape)  # type: ignore[arg-type]


def floats(tensor: dict[str, Any], shape: tuple[int, ...], tail: memoryview) -> npt.NDArray[np.float32]:
    """The values of the input `input`, finite, in their shape. tail: the bytes behind the message's JSON."""
    raw = _raw(tensor, INPUT, tail)
    count = math.prod(shape)
    values = np.full(1, np.nan, np.float32)
    if raw is not None:
        if len(raw) != 4 * count:
            raise BadTensor(f"The shape of '{INPUT}' takes {4 * count} bytes, and it has {len(raw)}.")
        values = np.frombuffer(raw, "<f4").astype(np.float32)
    else:
        numbers = _flat(tensor.get("data"), shape)
        if numbers is None:
            raise BadTensor(
                f"The data of '{INPUT}' do not have its shape, {list(shape)}, nor are they {count} numbers in a row."
            )
        # One by one, because numpy would take text for numbers, and allocate by the longest.
        if not all(type(number) in (int, float) for number in numbers):
            raise BadTensor(f"The data of '{INPUT}' are not all numbers.")
        with np.errstate(over="ignore"), contextlib.suppress(OverflowError):  # which the next check finds
            values = np.array(numbers, np.float64).astype(np.float32)
    if not np.isfinite(values).all():
        raise BadTensor(f"The data of '{INPUT}' are not all finite FP32 numbers.")
    return values.reshape(shape)


def images(tensor: dict[str, Any], count: int, tail: memoryview) -> list[bytes]:
    """The encoded pictures of the input `image`, so many. tail: as for `floats`."""
    raw = _raw(tensor, IMAGE, tail)
    if raw is not None:
        elements = _unpacked(raw, count)
    else:
        data = tensor.get("data")
        if not isinstance(data, list) or not all(isinstance(entry, str) for entry in data):
            raise BadTensor(f"The data of '{IMAGE}' are no list of base64 strings.")
        _require_count(len(data), count)
        try:
            elements = [base64.b64decode(entry, validate=True) for entry in data]
        except (binascii.Error, ValueError) as error:
            raise BadTensor(f"The data of '{IMAGE}' are not base64, which pictures within JSON are sent as.") from error
    _require_count(len(elements), count)
    return elements


def _raw(tensor: dict[str, Any], name: str, tail: memoryview) -> memoryview | None:
    """The tensor's bytes where it is a binary one."""
    size = parameters_of(tensor, name).get("binary_data_size")
    if size is None:
        if len(tail):
            raise BadTensor(f"{len(tail)} bytes follow the JSON, but '{name}' has no binary_data_size.")
        return None
    if "data" in tensor:
        raise BadTensor(f"The tensor '{name}' has both data and binary_data_size.")
    if type(size) is not int or size != len(tail):
        raise BadTensor(f"The binary_data_size of '{name}' is {shown(size)}, but {len(tail)} bytes follow the JSON.")
    return tail


def _flat(data: Any, shape: tuple[int, ...]) -> list[Any] | None:
    """Nested lists of this shape, or a single one of as many elements, as a single one; None where it is neither."""
    if isinstance(data, list) and len(data) == math.prod(shape) and not any(isinstance(entry, list) for entry in data):
        return data
    level = [data]
    for side in shape:
        if not all(isinstance(part, list) and len(part) == side for part in level):
            return None
        level = [entry for part in level for entry in part]
    return level


def _require_count(found: int, count: int) -> None:
    if found != count:
        many = "more" if found > count else found
        raise BadTensor(f"The shape of '{IMAGE}' is [{count}], but it has {many} elements.")


def _unpacked(raw: memoryview, count: int) -> list[bytes]:
    """The elements of a binary BYTES tensor, each behind its length in four bytes; no more than one beyond `count`."""
    elements: list[bytes] = []
    position = 0
    while position < len(raw) and len(elements) <= count:
        start = position + LENGTH.size
        length = LENGTH.unpack_from(raw, position)[0] if start <= len(raw) else len(raw)
        position = start + length
        if position > len(raw):
            raise BadTensor(f"An element of '{IMAGE}' is longer than the bytes that are left.")
        elements.append(bytes(raw[start:position]))
    return elements


def parameters_of(owner: dict[str, Any], name: str) -> dict[str, Any]:
    """The `parameters` of a request or a tensor, which it may lack."""
    parameters = owner.get("parameters")
    if not (parameters is None or isinstance(parameters, dict)):
        raise BadTensor(f"The parameters of '{name}' are no JSON object.")
    return parameters or {}


def shown(value: Any) -> str:
    """A value of a message as an error quotes it, not all of it where it is long."""
    text = ""
    for piece in _ENCODER.iterencode(value[:_SHOWN_CHARACTERS] if isinstance(value, str) else value):
        text += piece
        if len(text) > _SHOWN_CHARACTERS:
            break
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
