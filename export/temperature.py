"""Temperature scaling: one number that makes a model's probabilities mean what they say (Guo et al. 2017).

Logits are divided by the temperature before softmax or sigmoid. The order of the classes stays the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from export.errors import TemperatureError
from export.evaluate import probabilities
from export.onnx_graph import Array

MIN_LABELLED: Final = 50  # photographs: half of them to fit on, half to measure on
BINS: Final = 15  # as in Guo et al.
_LOWEST, _HIGHEST = 0.1, 10.0  # where every answer is right, the best temperature would be 0
_STEPS: Final = 60  # of a golden-section search; each narrows the interval to 62 %
_GOLDEN: Final = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Temperature:
    """A temperature, None for none, and the rows of the photographs that it was fitted on; none if it was given."""

    value: float | None
    fitted_on: tuple[int, ...] = ()

    def to_card(
        self, activation: str, logits: Array, labels: Sequence[int | None], rows: Sequence[int]
    ) -> dict[str, Any]:
        """Returns the entries for a model card: the temperature and, if there is enough to measure on, the errors.

        Args:
            activation: softmax or sigmoid.
            logits: of the model, `[N, classes]`.
            labels: of all photographs, None if unknown.
            rows: which of all photographs the logits are of. Those that were fitted on are left out.
        """
        fitted = set(self.fitted_on)
        kept = [place for place, row in enumerate(rows) if row not in fitted and labels[row] is not None]
        card: dict[str, Any] = {} if self.value is None else {"temperature": self.value}
        if len(kept) < MIN_LABELLED // 2 or logits.shape[1] == 1:  # no photograph is known to lack it
            return card
        truth = np.array([labels[rows[place]] for place in kept])
        error = {"photographs": len(kept), "before": round(calibration_error(logits[kept], truth, activation), 4)}
        if self.value is not None:
            error["after"] = round(calibration_error(logits[kept], truth, activation, self.value), 4)
        return {**card, "expected_calibration_error": error}


def fit(logits: Array, labels: Sequence[int | None], activation: str) -> Temperature:
    """Fits the temperature to every second photograph whose class is known, so that the others are left to measure on.

    Args:
        logits: of the fp32 model, `[N, classes]`.
        labels: of the photographs, None if unknown.
        activation: softmax or sigmoid.

    Raises:
        TemperatureError: fewer than `MIN_LABELLED` photographs have a label.
    """
    chosen = labelled_rows(labels)[::2]
    truth = np.array([labels[row] for row in chosen])
    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    for _ in range(_STEPS):  # the loss has one minimum
        first, second = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        losses = [_loss(logits[chosen], truth, activation, math.exp(point)) for point in (first, second)]
        low, high = (low, second) if losses[0] <= losses[1] else (first, high)
    return Temperature(float(f"{math.exp((low + high) / 2):.3g}"), tuple(chosen))


def labelled_rows(labels: Sequence[int | None]) -> list[int]:
    """Returns the places of the photographs whose class is known.

    Raises:
        TemperatureError: there are fewer than `MIN_LABELLED`.
    """
    known = [row for row, label in enumerate(labels) if label is not None]
    if len(known) < MIN_LABELLED:
        raise TemperatureError(
            f"--fit-temperature needs at least {MIN_LABELLED} photographs whose class is known, not {len(known)}; put "
            "them into folders that are called as the labels, and name the folder around these with --photos"
        )
    return known


def calibration_error(logits: Array, truth: Array, activation: str, temperature: float = 1.0) -> float:
    """Returns the expected calibration error: how far, on average, a probability is from the share of right answers.

    Softmax: of the likeliest class's probability. Sigmoid: of each class's own.

    Args:
        logits: `[N, classes]`.
        truth: the classes that the photographs show, `[N]`.
        activation: softmax or sigmoid.
        temperature: that the logits are divided by.
    """
    values = probabilities(logits / temperature, activation)
    if activation == "sigmoid":
        confidence, right = values.ravel(), (np.arange(values.shape[1]) == truth[:, None]).ravel()
    else:
        confidence, right = values.max(1), values.argmax(1) == truth
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence - right, BINS)  # a bin's sum of differences is its gap times its size
    return float(np.abs(gaps).sum() / len(confidence))


def _loss(logits: Array, truth: Array, activation: str, temperature: float) -> float:
    """Returns the negative log-likelihood of the true classes, averaged."""
    scaled = logits.astype(np.float64) / temperature
    if activation == "sigmoid":
        signs = np.where(np.arange(scaled.shape[1]) == truth[:, None], 1, -1)
        return float(np.logaddexp(0, -signs * scaled).mean())
    shifted = scaled - scaled.max(1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(truth)), truth]).mean())
