"""Reads the Open Inference Protocol's tensors into arrays and encoded images.

Memory is allocated for the bytes that were received, never for the sizes that a message claims.
"""

import base64
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
# The length that precedes each element of a binary BYTES tensor.
LENGTH: Final = struct.Struct("<I")
_SHOWN_CHARACTERS: Final = 40


def read_shape(
    tensor: dict[str, Any], name: str, datatype: str, row: tuple[int, ...], max_rows: int
) -> tuple[int, ...]:
    """Returns the shape of a tensor of this datatype, `(N, *row)`.

    Raises:
        BadTensor: the datatype is another, or the shape is not `(N, *row)` with N at least 1.
        TooManyFiles: N is more than `max_rows`.
    """
    if tensor.get("datatype") != datatype:
        raise BadTensor(f"The datatype of '{name}' is {quote(tensor.get('datatype'))}; the model takes {datatype}.")
    shape: Any = tensor.get("shape")
    wanted = ", ".join(["N", *map(str, row)])
    is_shape = isinstance(shape, list) and all(type(side) is int for side in shape)
    if not is_shape or len(shape) != 1 + len(row) or tuple(shape[1:]) != row or shape[0] < 1:
        raise BadTensor(f"The shape of '{name}' is {quote(shape)}; the model takes [{wanted}] with N at least 1.")
    if shape[0] > max_rows:
        raise TooManyFiles(f"The shape of '{name}' is {quote(shape)}; the limit is {max_rows} rows per request.")
    return tuple(shape)


def read_floats(tensor: dict[str, Any], shape: tuple[int, ...], tail: memoryview) -> npt.NDArray[np.float32]:
    """Returns the values of the tensor `input`, all finite; raises `BadTensor`.

    Args:
        tensor: the tensor's JSON object.
        shape: its shape, already checked.
        tail: the bytes after the message's JSON.
    """
    raw = _raw_bytes(tensor, INPUT, tail)
    count = math.prod(shape)
    values = np.full(1, np.nan, np.float32)
    if raw is not None:
        if len(raw) != 4 * count:
            raise BadTensor(f"The shape of '{INPUT}' takes {4 * count} bytes, but its data has {len(raw)}.")
        values = np.frombuffer(raw, "<f4").astype(np.float32)
    else:
        numbers = _flatten(tensor.get("data"), shape)
        if numbers is None:
            raise BadTensor(
                f"The data of '{INPUT}' is neither of shape {list(shape)} nor a flat list of {count} numbers."
            )
        # Checked one by one, because numpy would convert strings to numbers, and allocate by the longest.
        if not all(type(number) in (int, float) for number in numbers):
            raise BadTensor(f"The data of '{INPUT}' contains something other than numbers.")
        with np.errstate(over="ignore"), contextlib.suppress(OverflowError):  # the next check finds these
            values = np.array(numbers, np.float64).astype(np.float32)
    if not np.isfinite(values).all():
        raise BadTensor(f"The data of '{INPUT}' contains values that are not finite FP32 numbers.")
    return values.reshape(shape)


def read_images(tensor: dict[str, Any], count: int, tail: memoryview) -> list[bytes]:
    """Returns the `count` encoded images of the tensor `image`; arguments and errors are as for `read_floats`."""
    raw = _raw_bytes(tensor, IMAGE, tail)
    if raw is not None:
        elements = _unpack(raw, count)
    else:
        data = tensor.get("data")
        if not isinstance(data, list) or not all(isinstance(entry, str) for entry in data):
            raise BadTensor(f"The data of '{IMAGE}' is not a list of base64 strings.")
        _require_count(len(data), count)
        try:
            elements = [base64.b64decode(entry, validate=True) for entry in data]
        except ValueError as error:
            raise BadTensor(f"The data of '{IMAGE}' is not base64, the encoding of images in JSON.") from error
    _require_count(len(elements), count)
    return elements


def _raw_bytes(tensor: dict[str, Any], name: str, tail: memoryview) -> memoryview | None:
    """Returns a binary tensor's bytes, and None for any other tensor."""
    size = read_parameters(tensor, f"'{name}'").get("binary_data_size")
    if size is None:
        if len(tail):
            raise BadTensor(f"{len(tail)} bytes follow the JSON, but '{name}' has no binary_data_size.")
        return None
    if "data" in tensor:
        raise BadTensor(f"The tensor '{name}' has both data and binary_data_size.")
    if type(size) is not int or size != len(tail):
        raise BadTensor(f"The binary_data_size of '{name}' is {quote(size)}, but {len(tail)} bytes follow the JSON.")
    return tail


def _flatten(data: Any, shape: tuple[int, ...]) -> list[Any] | None:
    """Flattens nested lists of this shape, or returns a flat list of as many elements; None if `data` is neither."""
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


def _unpack(raw: memoryview, count: int) -> list[bytes]:
    """Returns the elements of a binary BYTES tensor, each preceded by its length in four bytes; at most `count` + 1."""
    elements: list[bytes] = []
    position = 0
    while position < len(raw) and len(elements) <= count:
        start = position + LENGTH.size
        length = LENGTH.unpack_from(raw, position)[0] if start <= len(raw) else len(raw)
        position = start + length
        if position > len(raw):
            raise BadTensor(f"An element of '{IMAGE}' is longer than the bytes that follow it.")
        elements.append(bytes(raw[start:position]))
    return elements


def read_parameters(owner: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the `parameters` of a request or a tensor, empty if it has none."""
    parameters = owner.get("parameters")
    if not (parameters is None or isinstance(parameters, dict)):
        raise BadTensor(f"The parameters of {name} are not a JSON object.")
    return parameters or {}


def quote(value: Any) -> str:
    """Returns a message's value as JSON for an error message, shortened if it is long."""
    text = ""
    for piece in json.JSONEncoder().iterencode(value[:_SHOWN_CHARACTERS] if isinstance(value, str) else value):
        text += piece
        if len(text) > _SHOWN_CHARACTERS:
            break
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
