"""fp32 model → int8 model: exact rewrites, calibration, quantisation, and the gate that int8 has to pass.

Errors that leave here: `CalibrationError`, `QuantizationError`, `GateError`.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from export.architectures import Architecture
from export.errors import CalibrationError, GateError, QuantizationError
from export.evaluate import Comparison, logits_of
from export.int8 import calibration as records
from export.int8.calibration import Calibration, Ranges
from export.int8.graph_passes import HEADROOM, chain_concats, clip_batchnorms, equalize_channels, merge_average_pools
from export.int8.quantize import quantize
from export.onnx_graph import Array
from serve.imaging.preprocess import Preprocessing

RECORDS: Final = Path(__file__).with_name("calibration_data")
PHOTOGRAPHS: Final = 100  # a calibration looks at
MAX_REWRITE_DIFFERENCE: Final = 1e-3  # logits; the float steps are exact but for float's own rounding
# The gate, on at least this many photographs that calibration did not see:
ENOUGH: Final = 100
MAX_TOP1_LOSS: Final = 0.005
MIN_AGREEMENT: Final = 0.97
# With fewer there is no accuracy to speak of, and only gross misfits can be seen:
MAX_MEAN_DIFFERENCE: Final = 0.3  # logits; a fitting calibration gives 0.1
MAX_OUTSIDE: Final = 0.02  # share of channels that leave their recorded range, headroom included
MIN_USED: Final = 0.2  # of its recorded range that the median channel uses

Progress = Callable[[int, int], None]


def rewrite(model: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    """The float steps: none of them changes an answer, and after them 8 bits suffice.

    Raises `QuantizationError` where channels meet in a Concat and cannot be given one scale.
    """
    equalized = equalize_channels(model, ranges)
    if equalized is model and any(node.op_type == "Concat" for node in model.graph.node):
        raise QuantizationError("something besides BatchNorms reads what meets in a Concat, so it has no common scale")
    model = clip_batchnorms(equalized)
    model = merge_average_pools(model)
    return chain_concats(model)


def make_int8(
    model: onnx.ModelProto, architecture: Architecture, calibration: Calibration, images: Sequence[Array] = ()
) -> onnx.ModelProto:
    """All steps, from the exported fp32 model to the int8 one; on `pictures` the float steps must change no answer."""
    rewritten = rewrite(model, calibration.ranges)
    if images:
        require_unchanged(model, rewritten, images)
    return quantize(rewritten, calibration, input_range(architecture.preprocessing), architecture.small_classifier)


def require_unchanged(model: onnx.ModelProto, rewritten: onnx.ModelProto, images: Sequence[Array]) -> None:
    """Raise `QuantizationError` with the figure unless both models give the same logits."""
    before, after = (
        logits_of(each.SerializeToString(), images, lambda done, total: None, len(images))
        for each in (model, rewritten)
    )
    difference = float(np.abs(after - before).max())
    if not difference <= MAX_REWRITE_DIFFERENCE:
        raise QuantizationError(
            f"the rewritten fp32 network differs: max |Δ logit| is {difference:.2g}, more than {MAX_REWRITE_DIFFERENCE}"
        )


def input_range(spec: Preprocessing) -> tuple[float, float]:
    """What black and white become: the model's input cannot leave this range, so it needs no calibration."""
    low = min((0 - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True))
    high = max((1 - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True))
    return low, high


def choose_photographs(paths: Sequence[Path]) -> list[Path]:
    """The ones to calibrate on: `PHOTOGRAPHS` spread evenly over those given; raises `CalibrationError` if too few."""
    if len(paths) < PHOTOGRAPHS:
        raise CalibrationError(f"{len(paths)} photographs to calibrate on; at least {PHOTOGRAPHS} are needed")
    return [paths[position * len(paths) // PHOTOGRAPHS] for position in range(PHOTOGRAPHS)]


def calibrate(
    model: onnx.ModelProto, batches: Callable[[], Iterable[Array]], calibration: Calibration, progress: Progress
) -> None:
    """Fill `calibration` with what the photographs show, rounded as its file is, so that both make the same model.

    batches: FP32 `[1, 3, S, S]` each, afresh at each call.
    """
    count = len(calibration.photographs)
    seen = records.observe_ranges(model, batches(), lambda done: progress(done, 2 * count))
    low, high = (records.rounded({name: ends[end] for name, ends in seen.items()}) for end in (0, 1))
    calibration.ranges = {name: (low[name], high[name]) for name in seen}
    rewritten = rewrite(model, calibration.ranges)
    means, active = records.observe_means(rewritten, batches(), lambda done: progress(count + done, 2 * count))
    calibration.means, calibration.active = records.rounded(means), records.rounded(active)


def require_weights(sha256: str | None, calibration: Calibration) -> None:
    """Raise `CalibrationError` unless these are the weights that the calibration was recorded with."""
    if sha256 != calibration.weights_sha256:
        raise CalibrationError(
            f"the recorded calibration is of other weights, sha256 {str(calibration.weights_sha256)[:8]}…; "
            "make one with --calibrate DIR"
        )


def require_fit(model: onnx.ModelProto, batches: Iterable[Array], calibration: Calibration) -> None:
    """Raise `CalibrationError` unless some pictures' activations stay within the record, and fill it."""
    observed = records.observe_ranges(model, batches, lambda done: None)
    if set(observed) != set(calibration.ranges):
        raise CalibrationError("the recorded calibration is of another graph")
    outside, used = [], []
    for name, (low, high) in observed.items():
        recorded_low, recorded_high = calibration.ranges[name]
        if recorded_low.shape != low.shape:
            raise CalibrationError(f"the recorded calibration has other channels in {name!r}")
        width = np.maximum(recorded_high - recorded_low, 1e-9)
        room = (HEADROOM - 1) * width
        outside.append((high > recorded_high + room) | (low < recorded_low - room))
        used.append((high - low) / width)
    share, usage = float(np.concatenate(outside).mean()), float(np.median(np.concatenate(used)))
    if share > MAX_OUTSIDE:
        raise CalibrationError(f"{share:.1%} of the channels leave their recorded ranges, more than {MAX_OUTSIDE:.0%}")
    if usage < MIN_USED:
        raise CalibrationError(f"the median channel uses {usage:.0%} of its recorded range, less than {MIN_USED:.0%}")


def require_accuracy(comparison: Comparison) -> None:
    """Raise `GateError`, with the figure, where int8 answers too differently from fp32."""
    if comparison.photographs < ENOUGH:
        if not comparison.mean_abs_difference <= MAX_MEAN_DIFFERENCE:
            raise GateError(
                f"mean |Δ logit| is {comparison.mean_abs_difference:.2f} on {comparison.photographs} photographs, "
                f"more than {MAX_MEAN_DIFFERENCE}"
            )
        return
    if not comparison.agreement >= MIN_AGREEMENT:
        raise GateError(f"int8 agrees with fp32 on {comparison.agreement:.1%}, less than {MIN_AGREEMENT:.0%}")
    loss = comparison.top1_loss
    if loss is not None and not loss <= MAX_TOP1_LOSS + 1e-9:  # two of 400 are 0.5 points, whatever floats say
        raise GateError(f"int8 loses {100 * loss:.2f} points of top-1, more than {100 * MAX_TOP1_LOSS:.1f}")
