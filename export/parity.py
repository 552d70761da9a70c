"""The proof of the same answers: logits against the PyTorch network, pixels against torchvision's preset.

Errors that leave here: `ParityError`, with the figure that broke its bound, and `PhotographError`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from PIL import Image, ImageOps
from torch import nn
from torchvision.transforms._presets import ImageClassification

from export.architectures import Architecture
from export.errors import ParityError, PhotographError
from serve.errors import RequestError
from serve.imaging.decode import ImageLimits, decode, open_image
from serve.imaging.preprocess import Preprocessing, to_input

LOGIT_TOLERANCE: Final = 1e-4
PIXEL_TOLERANCE: Final = 1e-6
BATCH_SIZES: Final = (1, 3)
_TOP: Final = 5
_NO_LIMIT: Final = ImageLimits(2**40, max_frames=2**40)

Array = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass
class LogitParity:
    """Figures over everything compared so far; differences in logits."""

    batch_sizes: tuple[int, ...] = ()
    max_abs_difference: float = 0.0
    tolerance: float = 0.0
    images: int = 0
    top1_agreed: int = 0

    def to_card(self) -> dict[str, Any]:
        return {
            "max_abs_logit_difference": _rounded_up(self.max_abs_difference),
            "tolerance": float(f"{self.tolerance:.1g}"),
            "batch_sizes": list(self.batch_sizes),
            "photographs": self.images,
            "top1_agreement": self.top1_agreed / self.images if self.images else None,
        }


class LogitCheck:
    """Runs the network and the ONNX model on the same inputs and compares; `result` adds up what was seen."""

    def __init__(self, network: nn.Module, model: onnx.ModelProto, relative: bool) -> None:
        """relative: for untrained weights, whose logits have no usual scale, the bound is relative to their spread."""
        self._network = network
        self._session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self._relative = relative
        self.result = LogitParity()

    def batches(self, input_side: int, seed: int) -> None:
        """Compare on noise at each of `BATCH_SIZES`."""
        noise = np.random.default_rng(seed)
        for size in BATCH_SIZES:
            self._compare(noise.standard_normal((size, 3, input_side, input_side), np.float32), f"batch of {size}")
            self.result.batch_sizes += (size,)

    def image(self, batch: Array, name: str) -> None:
        """Compare on one preprocessed photograph, FP32 `[1, 3, S, S]`."""
        top1_agrees = self._compare(batch, name)
        self.result.images += 1
        self.result.top1_agreed += top1_agrees

    def _compare(self, batch: Array, name: str) -> bool:
        with torch.no_grad():
            wanted: Array = self._network(torch.from_numpy(batch)).numpy()
        got: Array = self._session.run(["logits"], {"input": batch})[0]
        tolerance = LOGIT_TOLERANCE * (float(np.ptp(wanted)) if self._relative else 1.0)
        difference = compare_logits(wanted, got, tolerance, name)
        self.result.max_abs_difference = max(self.result.max_abs_difference, difference)
        self.result.tolerance = max(self.result.tolerance, tolerance)
        return bool(wanted[0].argmax() == got[0].argmax())


def compare_logits(wanted: Array, got: Array, tolerance: float, name: str) -> float:
    """Shape first, then max |Δ logit| ≤ tolerance, then the same top five in the same order.

    wanted, got: `[N, classes]`. Classes closer than the tolerance may change places. Returns max |Δ logit|; raises
    `ParityError` with the figure.
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
    """Every photograph: the server's preprocessing against torchvision's, then logits. Returns max |Δ pixel|."""
    worst = 0.0
    preset, spec = architecture.preset, architecture.preprocessing
    for position, path in enumerate(paths, start=1):
        batch, difference = compare_pixels(path, preset, spec)
        worst = max(worst, difference)
        check.image(batch, path.name)
        progress(position, len(paths))
    return worst


def read_photograph(path: Path, spec: Preprocessing) -> Array:
    """A photograph as the server feeds it to the model, FP32 `[1, 3, S, S]`; raises `PhotographError`."""
    try:
        return to_input(decode(open_image(path.read_bytes(), spec, _NO_LIMIT)), spec)
    except (OSError, RequestError) as error:
        raise PhotographError(f"photograph {path}: {error}") from error


def compare_pixels(path: Path, preset: ImageClassification, spec: Preprocessing) -> tuple[Array, float]:
    """One photograph both ways: the server's input, FP32 `[1, 3, S, S]`, and max |Δ| in normalised units."""
    got = read_photograph(path, spec)
    wanted = preset(reference_image(path))[None].numpy()
    if wanted.shape != got.shape:
        raise ParityError(
            f"preprocessing: {path.name}: torchvision gives {list(wanted.shape)}, the server {list(got.shape)}"
        )
    difference = float(np.abs(wanted - got).max())
    if not difference <= PIXEL_TOLERANCE:
        raise ParityError(f"preprocessing: {path.name}: max |Δ| is {difference:.3g}, more than {PIXEL_TOLERANCE:.3g}")
    return got, difference


def reference_image(path: Path) -> Image.Image:
    """torchvision's usual loader with the server's two stated exceptions, written apart from the server's code."""
    # An open file, as torchvision has it: given a path, Pillow maps plain TIFFs and reads turned ones wrongly.
    with path.open("rb") as file, Image.open(file) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            eight_bit = np.rint(np.asarray(upright).astype(np.float64) * 255 / 65535).astype(np.uint8)
            upright = Image.fromarray(eight_bit)
        return upright.convert("RGB")


def find_photographs(places: Iterable[Path]) -> list[Path]:
    """The picture files named, and those in the folders named, sorted within each; raises `PhotographError`."""
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in place.iterdir() if path.suffix.lower() in _SUFFIXES)
            if not inside:
                raise PhotographError(f"photographs {place}: no pictures in this folder")
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise PhotographError(f"photographs {place}: no such file or folder")
    return found


_SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}


def _rounded_up(value: float) -> float:
    """Up to the next 1, 2 or 5 × 10ⁿ: a bound that holds, and the same whatever order the threads added up in."""
    if value == 0:
        return 0.0
    magnitude = 10.0 ** math.floor(math.log10(value))
    return float(f"{next(step for step in (1, 2, 5, 10) if value <= step * magnitude * (1 + 1e-9)) * magnitude:.0e}")
