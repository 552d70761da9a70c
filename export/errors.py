"""Why an export stops; each message is the whole sentence the user reads."""


class ExportError(Exception):
    """Base of all errors an export ends with on purpose; no model file is written."""


class WeightsError(ExportError):
    """The weights cannot be had, read, or fitted to the network."""


class PhotographError(ExportError):
    """A photograph for the parity check cannot be read."""


class ParityError(ExportError):
    """The exported model, or the server's preprocessing, does not give PyTorch's answers."""


class CalibrationError(ExportError):
    """The recorded calibration cannot be read, does not fit the network, or cannot be made."""


class GateError(ExportError):
    """The int8 model is less accurate than the bound allows; the fp32 model is written all the same."""


class QuantizationError(ExportError):
    """The network has an operator, or the calibration a gap, for which there is no integer form."""
