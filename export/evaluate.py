"""Measures a model: its logits on photographs, its accuracy where labels are known, its latency."""

import json
import re
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from export.console import Progress
from export.engines import open_session
from export.files import ROOT
from export.onnx_graph import Array
from serve.config.cpus import cpu_features, cpu_model
from serve.imaging.normalise import to_pixels
from serve.imaging.preprocess import Preprocessing

CLEAR_MARGIN: Final = 0.1  # of probability between the reference's first two classes; a smaller one is a near tie
_WNID: Final = re.compile(r"(n\d{8})[_.]")
_AFTER_LABEL: Final = re.compile(r"[_.\- ]")
_CPU_FEATURES: Final = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
_ROUNDS: Final = 12
_FEWEST_ROUNDS: Final = 4
_SECONDS: Final = 8.0  # after which no further round begins, because a slow CPU needs no more than the fewest
_UNTIMED: Final = 3  # the first runs after another session's find cold caches and sleeping threads
_TIMED: Final = 8


@dataclass(frozen=True)
class Comparison:
    """A model's answers compared with the reference's on the same photographs.

    top1, reference_top1: the share of labelled photographs classified correctly; None if none has a label.
    agreement: the share of photographs that both give the same class. Differences are in logits. clear_agreement: the
    same where the reference's first two classes are at least `CLEAR_MARGIN` apart; None if they nowhere are.
    """

    photographs: int
    top1: float | None
    reference_top1: float | None
    agreement: float
    max_abs_difference: float
    mean_abs_difference: float
    clear_agreement: float | None

    @property
    def top1_loss(self) -> float | None:
        """The reference's top-1 accuracy minus the model's, as a share; negative if the model is better."""
        return None if self.top1 is None or self.reference_top1 is None else self.reference_top1 - self.top1

    def reference_card(self) -> dict[str, Any]:
        """Returns the reference's accuracy, for its own model card."""
        return {"photographs": self.photographs, "top1": _rounded(self.reference_top1)}

    def to_card(self) -> dict[str, Any]:
        """Returns the model's figures, for its model card."""
        return {
            "photographs": self.photographs,
            "top1": _rounded(self.top1),
            "fp32_top1": _rounded(self.reference_top1),
            **self.difference_card(),
        }

    def difference_card(self) -> dict[str, Any]:
        """Returns how far the model's answers are from the reference's, for its model card."""
        return {
            "agreement": round(self.agreement, 4),
            "clear_agreement": _rounded(self.clear_agreement),
            "max_abs_logit_difference": float(f"{self.max_abs_difference:.2g}"),
            "mean_abs_logit_difference": float(f"{self.mean_abs_difference:.2g}"),
        }


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def compare(logits: Array, reference: Array, labels: Sequence[int | None], activation: str = "softmax") -> Comparison:
    """Compares a model's logits `[N, classes]` with the reference's; an unknown label is None."""
    known = [row for row, label in enumerate(labels) if label is not None]
    truth = np.array([labels[row] for row in known])

    def top1(rows: Array) -> float | None:
        return float((_answers(rows[known]) == truth).mean()) if known else None

    difference = np.abs(logits - reference)
    agree = _answers(logits) == _answers(reference)
    clear = agree[_margins(reference, activation) >= CLEAR_MARGIN]
    return Comparison(
        len(logits),
        top1(logits),
        top1(reference),
        float(agree.mean()),
        float(difference.max()),
        float(difference.mean()),
        float(clear.mean()) if clear.size else None,
    )


def probabilities(logits: Array, activation: str = "softmax") -> Array:
    """Returns the probabilities of logits `[N, classes]`: softmax over the classes, or each class's own, sigmoid."""
    values = logits.astype(np.float64)
    if activation == "sigmoid":
        own: Array = np.exp(-np.logaddexp(0, -values))
        return own
    powers = np.exp(values - values.max(1, keepdims=True))
    shares: Array = powers / powers.sum(1, keepdims=True)
    return shares


def _answers(logits: Array) -> Array:
    """Returns the likeliest classes `[N]`; where there is one class alone, -1 for images that rather do not show it."""
    likeliest: Array = logits.argmax(1) if logits.shape[1] > 1 else np.where(logits[:, 0] > 0, 0, -1)
    return likeliest


def _margins(logits: Array, activation: str) -> Array:
    """Returns by how much probability the first class is ahead of the second, `[N]`, of logits `[N, classes]`.

    One class alone is compared with its absence.
    """
    if logits.shape[1] == 1:
        return np.asarray(np.abs(2 * probabilities(logits, activation)[:, 0] - 1))
    second, first = np.sort(probabilities(logits, activation), 1)[:, -2:].T
    margins: Array = first - second
    return margins


def takes_pixels(session: ort.InferenceSession) -> bool:
    """Returns whether a model's input is 8-bit RGB `[N, S, S, 3]` and not FP32 `[N, 3, S, S]`, normalised."""
    return bool(session.get_inputs()[0].type == "tensor(uint8)")


def logits_of(model: bytes, batches: Iterable[Array], spec: Preprocessing, progress: Progress, total: int) -> Array:
    """Runs a model on images, one at a time, and returns their logits `[N, classes]`.

    Args:
        model: the file's content. If it takes pixels, it gets those that the images were made from.
        batches: FP32 `[1, 3, S, S]`, normalised.
        spec: the model's preprocessing.
        progress: called after each image.
        total: the number of images.
    """
    session = open_session(model, 0)
    pixels = takes_pixels(session)
    rows = []
    for done, batch in enumerate(batches, start=1):
        rows.append(session.run(["logits"], {"input": to_pixels(batch, spec) if pixels else batch})[0])
        progress(done, total)
    return np.concatenate(rows)


def measure_latency(models: Mapping[str, bytes], side: int, threads: int) -> dict[str, float]:
    """Returns each model's median latency for one image, ms; runs are interleaved, so that noise hits all alike."""
    sessions = {name: open_session(model, threads) for name, model in models.items()}
    noise = np.random.default_rng(0)
    floats = noise.standard_normal((1, 3, side, side), np.float32)
    pixels = noise.integers(0, 256, (1, side, side, 3), np.uint8)
    images = {name: pixels if takes_pixels(session) else floats for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    until = time.monotonic() + _SECONDS
    for done in range(_ROUNDS):
        if done >= _FEWEST_ROUNDS and time.monotonic() > until:
            break
        for name, session in sessions.items():
            time.sleep(0.05)  # the other session's threads stop spinning meanwhile
            for position in range(_UNTIMED + _TIMED):
                started = time.perf_counter()
                session.run(["logits"], {"input": images[name]})
                if position >= _UNTIMED:
                    times[name].append((time.perf_counter() - started) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def class_numbers() -> dict[str, int]:
    """Returns the class number of each WordNet id."""
    entries = json.loads((ROOT / "imagenet_class_index.json").read_text(encoding="utf-8"))
    return {imagenet_id: int(number) for number, (imagenet_id, _) in entries.items()}


def label_of(path: Path, classes: Mapping[str, int]) -> int | None:
    """Returns a photograph's class from its file's or folder's name, None if neither tells it.

    A WordNet id in front of an underscore comes first, `<wnid>_…`, then a folder called as a label, then a label in
    front of the file's name, such as `cat_12.jpg`.

    Args:
        path: the photograph.
        classes: the number of each class, by its id and by its name.
    """
    for name in (path.name, f"{path.parent.name}_"):
        match = _WNID.match(name)
        if match and match[1] in classes:
            return classes[match[1]]
    if path.parent.name in classes:
        return classes[path.parent.name]
    ends = [match.start() for match in _AFTER_LABEL.finditer(path.name)]
    return next((classes[path.name[:end]] for end in reversed(ends) if path.name[:end] in classes), None)


def cpu() -> dict[str, Any]:
    """Returns the CPU's model and those of its features that decide which integer kernels run."""
    present = cpu_features()
    return {"model": cpu_model(), "features": [feature for feature in _CPU_FEATURES if feature in present]}
