"""What models answer on the photographs that were not used for calibration."""

from collections.abc import Sequence
from pathlib import Path

import onnx

from export.console import show_progress
from export.errors import GateError
from export.evaluate import Comparison, class_numbers, compare, label_of, logits_of
from export.onnx_graph import Array
from export.photographs import read_photographs
from serve.imaging.preprocess import Preprocessing


class HeldOut:
    """Photographs with the fp32 model's answers. fp32: its logits `[N, classes]`."""

    def __init__(self, model: onnx.ModelProto, photographs: Sequence[Path], spec: Preprocessing) -> None:
        """Runs the fp32 model on the photographs.

        Raises:
            GateError: there are none.
            PhotographError: one cannot be read.
        """
        if not photographs:
            raise GateError(
                "int8 was calibrated on all of the photographs, so none is left to compare on; name others with "
                "--photos"
            )
        self._photographs, self._spec = photographs, spec
        numbers = class_numbers()
        self._labels = [label_of(path, numbers) for path in photographs]
        self.fp32 = self.answers(model)

    def answers(self, model: onnx.ModelProto) -> Array:
        """Returns a model's logits `[N, classes]`, by the engine that the model is made for.

        Raises:
            EngineError: the engine cannot run it.
        """
        images = read_photographs(self._photographs, self._spec)
        return logits_of(model.SerializeToString(), images, self._spec, show_progress, len(self._photographs))

    def compare(self, logits: Array, reference: Array) -> Comparison:
        """Compares answers with others."""
        return compare(logits, reference, self._labels)
