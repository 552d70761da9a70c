"""Checks that the exported model gives PyTorch's logits and the server's preprocessing gives torchvision's pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
import torch
from PIL import Image, ImageOps
from torch import nn
from torchvision.transforms._presets import ImageClassification

from export.architectures import Architecture
from export.console import Progress
from export.errors import ParityError
from export.photographs import read_photograph
from serve.imaging.normalise import FloatArray
from serve.imaging.preprocess import Preprocessing

LOGIT_TOLERANCE: Final = 1e-4
_USUAL_SPREAD: Final = 64  # between the logits of an image; rounding errors grow with larger ones
PIXEL_TOLERANCE: Final = 1e-6
_USUAL_PIXEL: Final = 4  # the largest normalised value is 2.6 with ImageNet's mean and standard deviation
BATCH_SIZES: Final = (1, 3)
_TOP: Final = 5


@dataclass
class LogitParity:
    """The comparisons so far; differences are in logits."""

    batch_sizes: tuple[int, ...] = ()
    max_abs_difference: float = 0.0
    tolerance: float = 0.0
    images: int = 0
    top1_agreed: int = 0

    def to_card(self) -> dict[str, Any]:
        """Returns the figures for the model card."""
        return {
            "max_abs_logit_difference": _rounded_up(self.max_abs_difference),
            "tolerance": float(f"{self.tolerance:.1g}"),
            "batch_sizes": list(self.batch_sizes),
            "photographs": self.images,
            "top1_agreement": self.top1_agreed / self.images if self.images else None,
        }


class LogitCheck:
    """Runs the network and the ONNX model on the same inputs and compares their logits; `result` sums up all of them.

    Every method that compares raises `ParityError` when the logits differ too much.
    """

    def __init__(self, network: nn.Module, model: onnx.ModelProto, relative: bool) -> None:
        """Loads the model.

        Args:
            network: in inference mode.
            model: what was exported from it.
            relative: scale the tolerance by the logits' range, for untrained weights, whose logits can have any scale.
        """
        self._network = network
        self._session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self._relative = relative
        self._rows: list[FloatArray] = []
        self.result = LogitParity()

    @property
    def logits(self) -> FloatArray:
        """The ONNX model's logits of the photographs that were compared, in their order, `[N, classes]`."""
        return np.concatenate(self._rows)

    def compare_batches(self, input_side: int, seed: int) -> None:
        """Compares on noise, with a batch of each of `BATCH_SIZES`."""
        noise = np.random.default_rng(seed)
        for size in BATCH_SIZES:
            self._compare(noise.standard_normal((size, 3, input_side, input_side), np.float32), f"batch of {size}")
            self.result.batch_sizes += (size,)

    def compare_image(self, batch: FloatArray, name: str) -> None:
        """Compares on one preprocessed photograph, FP32 `[1, 3, S, S]`."""
        wanted, got = self._compare(batch, name)
        self._rows.append(got)
        self.result.images += 1
        self.result.top1_agreed += bool(wanted[0].argmax() == got[0].argmax())

    def _compare(self, batch: FloatArray, name: str) -> tuple[FloatArray, FloatArray]:
        with torch.no_grad():
            wanted: FloatArray = self._network(torch.from_numpy(batch)).numpy()
        if not np.isfinite(wanted).all():
            raise ParityError(f"parity: {name}: PyTorch's own logits are not finite; choose an earlier checkpoint")
        got: FloatArray = self._session.run(["logits"], {"input": batch})[0]
        spread = float(np.ptp(wanted))
        tolerance = LOGIT_TOLERANCE * (spread if self._relative else max(1.0, spread / _USUAL_SPREAD))
        difference = compare_logits(wanted, got, tolerance, name)
        self.result.max_abs_difference = max(self.result.max_abs_difference, difference)
        self.result.tolerance = max(self.result.tolerance, tolerance)
        return wanted, got


def compare_logits(wanted: FloatArray, got: FloatArray, tolerance: float, name: str) -> float:
    """Compares shapes first, then max |Δ logit| with the tolerance, then the order of the top five classes.

    Classes whose logits are closer than the tolerance may swap places.

    Args:
        wanted: PyTorch's logits `[N, classes]`.
        got: the ONNX model's logits `[N, classes]`.
        tolerance: in logits.
        name: of the input, for the error message.

    Returns:
        max |Δ logit|.

    Raises:
        ParityError: with the figure that is out of bounds.
    """
    if wanted.shape != got.shape:
        raise ParityError(
            f"parity: {name}: PyTorch's logits are {list(wanted.shape)}, the ONNX model's {list(got.shape)}"
        )
    difference = float(np.abs(wanted - got).max())
    if not difference <= tolerance:  # written so that NaN fails
        raise ParityError(f"parity: {name}: max |Δ logit| is {difference:.3g}, more than {tolerance:.3g}")
    for row, (wanted_row, got_row) in enumerate(zip(wanted, got, strict=True)):
        wanted_top, got_top = (np.argsort(-logits, kind="stable")[:_TOP] for logits in (wanted_row, got_row))
        gaps = np.abs(wanted_row[wanted_top] - wanted_row[got_top])
        if (gaps > tolerance).any():
            raise ParityError(
                f"parity: {name}, row {row}: the top five classes are {wanted_top.tolist()} in PyTorch and "
                f"{got_top.tolist()} in the ONNX model, {gaps.max():.3g} apart"
            )
    return difference


def check_photographs(
    paths: Sequence[Path], architecture: Architecture, check: LogitCheck, progress: Progress
) -> float:
    """Compares the preprocessed pixels, then the logits, of every photograph.

    Returns:
        max |Δ pixel|, in normalised units.

    Raises:
        ParityError: the pixels or logits of a photograph differ too much.
        PhotographError: a photograph cannot be read.
    """
    worst = 0.0
    preset, spec = architecture.preset, architecture.preprocessing
    for position, path in enumerate(paths, start=1):
        batch, difference = compare_pixels(path, preset, spec)
        worst = max(worst, difference)
        check.compare_image(batch, path.name)
        progress(position, len(paths))
    return worst


def compare_pixels(path: Path, preset: ImageClassification, spec: Preprocessing) -> tuple[FloatArray, float]:
    """Preprocess a photograph as the server does and as torchvision does, and compare.

    Returns:
        The server's input FP32 `[1, 3, S, S]`, and max |Δ| in normalised units.

    Raises:
        ParityError: the shapes differ, or the values by more than `PIXEL_TOLERANCE`.
        PhotographError: the photograph cannot be read.
    """
    got = read_photograph(path, spec)
    wanted = preset(reference_image(path))[None].numpy()
    if wanted.shape != got.shape:
        raise ParityError(
            f"preprocessing: {path.name}: torchvision gives {list(wanted.shape)}, the server {list(got.shape)}"
        )
    difference = float(np.abs(wanted - got).max())
    tolerance = PIXEL_TOLERANCE * max(1.0, float(np.abs(wanted).max()) / _USUAL_PIXEL)
    if not difference <= tolerance:
        raise ParityError(f"preprocessing: {path.name}: max |Δ| is {difference:.3g}, more than {tolerance:.3g}")
    return got, difference


def reference_image(path: Path) -> Image.Image:
    """Loads an image as torchvision does, with the server's two exceptions: EXIF orientation and 16-bit grey.

    It shares no code with the server on purpose.
    """
    # An open file, as in torchvision: given a path, Pillow maps plain TIFFs and reads rotated ones wrongly.
    with path.open("rb") as file, Image.open(file) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            eight_bit = np.rint(np.asarray(upright).astype(np.float64) * 255 / 65535).astype(np.uint8)
            upright = Image.fromarray(eight_bit)
        return upright.convert("RGB")


def _rounded_up(value: float) -> float:
    """Rounds up to the next 1, 2 or 5 × 10ⁿ, so that the figure doesn't depend on the order in which threads add."""
    if value == 0:
        return 0.0
    magnitude = 10.0 ** math.floor(math.log10(value))
    return float(f"{next(step for step in (1, 2, 5, 10) if value <= step * magnitude * (1 + 1e-9)) * magnitude:.0e}")
