"""The errors of an export; each message is a full sentence for the user."""

from collections.abc import Sequence


class ExportError(Exception):
    """Base of the errors that end an export on purpose; no model file is written.

    code: lines of Python that do what the message advises, to be shown below it.
    """

    def __init__(self, message: str, code: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.code = tuple(code)


class WeightsError(ExportError):
    """The weights cannot be found, read, or loaded into the network."""


class PhotographError(ExportError):
    """A photograph cannot be found or read."""


class ParityError(ExportError):
    """The exported model or the server's preprocessing does not give PyTorch's answers."""


class CalibrationError(ExportError):
    """The calibration record cannot be read or made, or does not fit the network."""


class QuantizationError(ExportError):
    """The network cannot be quantized: an operator is not supported, or the calibration lacks a tensor."""


class EngineError(ExportError):
    """The engine that a model is made for is not installed, or cannot run the model."""


class GateError(ExportError):
    """The int8 model is not accurate enough. The fp32 model is written all the same."""


class LabelsError(ExportError):
    """The labels cannot be read, or there is not one for each class."""


class TemperatureError(ExportError):
    """The temperature cannot be fitted: too few photographs have a label."""
