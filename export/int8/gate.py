"""The checks an int8 model must pass: its calibration fits, the passes change no answer, it is accurate enough."""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import onnx

from export.errors import CalibrationError, GateError, QuantizationError
from export.evaluate import Comparison, logits_of
from export.int8.calibration import Calibration, observe_ranges
from export.int8.graph_passes import HEADROOM
from export.onnx_graph import Array, Graph
from serve.imaging.preprocess import Preprocessing

MAX_OUTSIDE: Final = 0.02  # share of channels that may leave their recorded range, headroom included
MIN_USED: Final = 0.2  # share of its recorded range that the median channel must use
MAX_REWRITE_DIFFERENCE: Final = 1e-3  # logits; the passes are exact except for float rounding
# The accuracy gate, on at least this many photographs that were not used for calibration:
MIN_PHOTOGRAPHS: Final = 100
MAX_TOP1_LOSS: Final = 0.005
MIN_AGREEMENT: Final = 0.97
# Fewer photographs say nothing about accuracy and only show a gross error. With sigmoid, the likeliest class alone says
# too little, as each class has an answer of its own.
MAX_MEAN_DIFFERENCE: Final = 0.3  # logits; a calibration that fits gives 0.1


def require_fit(model: onnx.ModelProto, batches: Iterable[Array], calibration: Calibration) -> None:
    """Checks that the activations of some images stay within the recorded ranges and use enough of them.

    Args:
        model: the exported fp32 model.
        batches: images FP32 `[1, 3, S, S]`.
        calibration: the record to check.

    Raises:
        CalibrationError: the record does not fit.
    """
    observed = observe_ranges(Graph(model), batches, lambda done: None)
    if set(observed) != set(calibration.ranges):
        raise CalibrationError("the recorded calibration is for another graph; record a new one with --calibrate DIR")
    outside, used = [], []
    for name, (low, high) in observed.items():
        recorded_low, recorded_high = calibration.ranges[name]
        if recorded_low.shape != low.shape:
            raise CalibrationError(
                f"the recorded calibration has {len(recorded_low)} channels for {name!r}, the graph has {len(low)}"
            )
        width = np.maximum(recorded_high - recorded_low, 1e-9)
        room = (HEADROOM - 1) * width
        outside.append((high > recorded_high + room) | (low < recorded_low - room))
        used.append((high - low) / width)
    share, usage = float(np.concatenate(outside).mean()), float(np.median(np.concatenate(used)))
    if share > MAX_OUTSIDE:
        raise CalibrationError(f"{share:.1%} of the channels leave their recorded ranges, more than {MAX_OUTSIDE:.0%}")
    if usage < MIN_USED:
        raise CalibrationError(f"the median channel uses {usage:.0%} of its recorded range, less than {MIN_USED:.0%}")


def require_unchanged(
    model: onnx.ModelProto, rewritten: onnx.ModelProto, images: Sequence[Array], spec: Preprocessing
) -> None:
    """Checks that the graph passes changed no answer; arguments are as for `logits_of`.

    Raises:
        QuantizationError: logits differ by more than `MAX_REWRITE_DIFFERENCE`.
    """
    before, after = (
        logits_of(each.SerializeToString(), images, spec, lambda done, total: None, len(images))
        for each in (model, rewritten)
    )
    difference = float(np.abs(after - before).max())
    if not difference <= MAX_REWRITE_DIFFERENCE:
        raise QuantizationError(
            f"the rewritten fp32 network differs: max |Δ logit| is {difference:.2g}, more than {MAX_REWRITE_DIFFERENCE}"
        )


def require_accuracy(comparison: Comparison, activation: str = "softmax") -> None:
    """Checks that int8 gives fp32's answers often enough.

    Raises:
        GateError: with the figure that is out of bounds.
    """
    few = comparison.photographs < MIN_PHOTOGRAPHS
    if (few or activation == "sigmoid") and not comparison.mean_abs_difference <= MAX_MEAN_DIFFERENCE:
        raise GateError(
            f"int8 differs from fp32: mean |Δ logit| is {comparison.mean_abs_difference:.2f} on "
            f"{comparison.photographs} photographs, more than {MAX_MEAN_DIFFERENCE}"
        )
    if few:
        return
    if not comparison.agreement >= MIN_AGREEMENT:
        raise GateError(f"int8 agrees with fp32 on {comparison.agreement:.1%}, less than {MIN_AGREEMENT:.0%}")
    loss, most = comparison.top1_loss, max(MAX_TOP1_LOSS, 1 / comparison.photographs)  # one photograph proves nothing
    if loss is not None and not loss <= most + 1e-9:  # two of 400 are 0.5 points, despite float rounding
        raise GateError(f"int8 loses {100 * loss:.2f} points of top-1, more than {100 * most:.1f}")
