"""Rounds the weights of each Conv so that its output changes least, not each weight (GPTQ, Frantar et al. 2022).

Input channels are correlated, so what rounding one weight adds to the output can be taken back by rounding another in
the opposite direction. Weights are rounded one input at a time, for all output channels at once; before the next, the
weights that are still to be rounded are moved to where they make up best for the error so far. What they can make up
for follows from the covariance of the Conv's inputs alone. Every weight goes to one of the two nearest integers, so a
choice is one bit a weight, and neighbouring weights cannot saturate (`quant_params`).
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np
from onnx import NodeProto

from export.errors import QuantizationError
from export.int8.calibration import values_of
from export.int8.quant_params import kernel_order
from export.onnx_graph import Array, Graph, attribute

_POSITIONS: Final = 196  # of the output of each image; more change nothing that can be measured
# Of the mean variance, added to each: for inputs that do not vary, or only with others. The first is enough but where a
# few inputs vary so much more than the others that sums of single precision are off by more.
_DAMPINGS: Final = (1e-3, 1e-2, 1e-1, 1.0)
_SMALLEST: Final = 1e-20  # for inputs of which none varies
_BLOCK: Final = 128  # inputs; those after a block are moved once for all of it, in one product of matrices


def observe_covariances(
    graph: Graph, batches: Iterable[Array], means: Mapping[str, Array], progress: Callable[[int], None]
) -> dict[str, Array]:
    """Records how the inputs of each Conv vary together, at positions spread evenly over its output.

    Args:
        graph: the rewritten float graph.
        batches: images, as the graph takes them.
        means: of the Convs' inputs, `[C]` each; sums of single precision are exact enough if these are subtracted.
        progress: called with the number of batches done.

    Returns:
        Conv's output → covariance FP32 `[group, n, n]` of the n inputs of an output channel, in `kernel_order`.
    """
    convs = graph.of_type("Conv")
    sums: dict[str, Array] = {conv.output[0]: np.zeros(1) for conv in convs}
    products: dict[str, Array] = {name: np.zeros(1, np.float32) for name in sums}
    counts = dict.fromkeys(sums, 0)
    tensors = sorted({conv.input[0] for conv in convs})
    for number, values in enumerate(values_of(graph, tensors, batches, progress)):
        for conv in convs:
            name, source = conv.output[0], conv.input[0]
            kernel = graph.constants[conv.input[1]].shape[2:]
            inputs = _inputs(conv, kernel, values[source], means[source].astype(np.float32), number)
            sums[name] = sums[name] + inputs.sum(1, dtype=np.float64)
            products[name] = products[name] + inputs.transpose(0, 2, 1) @ inputs
            counts[name] += inputs.shape[1]
    for name, total in sums.items():
        mean = (total / counts[name]).astype(np.float32)
        products[name] = products[name] / np.float32(counts[name]) - mean[:, :, None] * mean[:, None]
    return products


def choose_rounding(weights: Array, covariance: Array) -> Array:
    """Chooses the weights that are rounded to the second nearest integer.

    Args:
        weights: `[out, in, height, width]`, in units of their scales.
        covariance: of their inputs, `[group, n, n]`, see `observe_covariances`.

    Returns:
        One bit a weight in `kernel_order`, packed, for `quantize_weights`.
    """
    groups, size, _ = covariance.shape
    rows = kernel_order(weights).reshape(groups, -1, size).copy()
    low, high, nearest = np.floor(rows), np.ceil(rows), np.rint(rows)
    moves = _moves(covariance.astype(np.float64))
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        errors = np.empty((*rows.shape[:2], end - start))
        for column in range(start, end):
            wanted = rows[:, :, column]
            chosen = np.clip(np.rint(wanted), low[:, :, column], high[:, :, column])
            error = errors[:, :, column - start] = wanted - chosen
            rows[:, :, column:end] -= error[:, :, None] * moves[:, None, column, column:end]
            rows[:, :, column] = chosen
        rows[:, :, end:] -= errors @ moves[:, start:end, end:]
    return np.packbits(rows != nearest)


def _moves(covariance: Array) -> Array:
    """Returns by how much the later weights move for an error of one in an earlier, `[group, n, n]`; 1 on the diagonal.

    With H = R·Rᵀ, R upper triangular, the rows of R⁻¹ are those of the Cholesky factor of H⁻¹ that GPTQ uses.
    """
    every = np.arange(covariance.shape[1])
    inverse = np.linalg.inv(_factor(covariance, every))
    moves: Array = inverse / inverse[:, every, every][:, :, None]
    return moves


def _factor(covariance: Array, every: Array) -> Array:
    """Returns R of covariance = R·Rᵀ, with as little damping as makes the covariance positive definite."""
    variance = covariance[:, every, every]
    mean = variance.mean(1, keepdims=True)
    for damping in _DAMPINGS:
        covariance[:, every, every] = variance + np.maximum(damping * mean, _SMALLEST)
        with contextlib.suppress(np.linalg.LinAlgError):
            factor: Array = np.linalg.cholesky(covariance[:, ::-1, ::-1])[:, ::-1, ::-1]
            return factor
    raise QuantizationError("the activations on the photographs vary too unevenly to round weights by; use others")


def _inputs(conv: NodeProto, kernel: tuple[int, ...], values: Array, means: Array, shift: int) -> Array:
    """Returns what an output channel of the Conv reads at some positions, minus the means: `[group, position, n]`."""
    top, left, bottom, right = attribute(conv, "pads", [0, 0, 0, 0])
    (down, across), (tall, wide) = attribute(conv, "strides", [1, 1]), attribute(conv, "dilations", [1, 1])
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    span = (tall * (kernel[0] - 1) + 1, wide * (kernel[1] - 1) + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, span, (2, 3))[:, :, ::down, ::across, ::tall, ::wide]
    images, channels, height, width = windows.shape[:4]
    count = images * height * width
    chosen = (np.linspace(0, count, min(count, images * _POSITIONS), endpoint=False).astype(int) + shift) % count
    image, row, column = np.unravel_index(chosen, (images, height, width))
    seen = windows[image, :, row, column] - means[:, None, None]
    group = attribute(conv, "group", 1)
    by_group = seen.reshape(len(chosen), group, channels // group, *kernel).transpose(1, 0, 3, 4, 2)
    return np.ascontiguousarray(by_group).reshape(group, len(chosen), -1)
