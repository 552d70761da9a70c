"""What models answer on the photographs that were not used for calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import onnx

from export.console import show_progress
from export.errors import GateError
from export.evaluate import Comparison, compare, logits_of
from export.int8.calibration import Calibration
from export.onnx_graph import Array
from export.photographs import Photographs, read_photographs
from serve.imaging.preprocess import Preprocessing


@dataclass(frozen=True)
class HeldOut:
    """Photographs with the fp32 model's answers. rows: their places among all photographs. fp32: `[N, classes]`."""

    paths: Sequence[Path]
    rows: Sequence[int]
    labels: Sequence[int | None]
    fp32: Array
    spec: Preprocessing
    activation: str

    @classmethod
    def of(cls, photographs: Photographs, calibration: Calibration, spec: Preprocessing, activation: str) -> Self:
        """Takes the photographs that were not calibrated on.

        Raises:
            GateError: there are none.
        """
        paths = calibration.held_out(photographs.paths)
        if not paths:
            raise GateError(
                "int8 was calibrated on all of the photographs, so none is left to compare on; name others with "
                "--photos"
            )
        rows = photographs.rows_of(paths)
        return cls(paths, rows, [photographs.labels[row] for row in rows], photographs.logits[rows], spec, activation)

    def answers(self, model: onnx.ModelProto) -> Array:
        """Returns a model's logits `[N, classes]`, by the engine that the model is made for.

        Raises:
            EngineError: the engine cannot run it.
            PhotographError: a photograph cannot be read.
        """
        images = read_photographs(self.paths, self.spec)
        return logits_of(model.SerializeToString(), images, self.spec, show_progress, len(self.paths))

    def compare(self, logits: Array, reference: Array) -> Comparison:
        """Compares answers with others."""
        return compare(logits, reference, self.labels, self.activation)
