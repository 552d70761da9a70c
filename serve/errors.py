"""The errors that the package raises, in the domain's terms; `problems.py` maps them to HTTP.

The message of a `RequestError` is a whole sentence for the client, that of a `StartError` one line for the operator;
both say what was wrong and which limit was exceeded. A `RequestError` ends one request, or one image of several; a
`StartError` ends the process.
"""

from collections.abc import Sequence


class ServeError(Exception):
    """Base class of every error that this package raises deliberately."""


class StartError(ServeError):
    """The server or command cannot start: a setting, a file or the address is unusable."""


class ConfigError(StartError):
    """A setting has a value that is not allowed."""


class ModelError(StartError):
    """The model file is missing, unreadable, lacks its metadata, or is not an image classifier."""


class ClassIndexError(StartError):
    """The class index is missing, malformed, or does not match the model's class count."""


class OutputError(StartError):
    """The output file cannot be written, or does not match the run that is to be resumed."""


class RequestError(ServeError):
    """Base class of the errors that end one request, or one image of several.

    Args:
        message: the whole sentence for the client.
        retry_after: seconds for Retry-After; None for the default in `problems.py`.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class MalformedRequest(RequestError):
    """The bytes received are not a valid request, or can be read in two ways."""


class HeadTooSlow(RequestError):
    """The request's head is not complete in time."""


class TargetTooLong(RequestError):
    """The request's target is longer than allowed."""


class HeadTooLarge(RequestError):
    """The request's head has more bytes or headers than allowed."""


class TooManyConnections(RequestError):
    """The server has as many connections as allowed, and all of them are busy."""


class UnknownRoute(RequestError):
    """No route has the request's path."""


class MethodNotAllowed(RequestError):
    """The route does not have the request's method, only those in `allowed`."""

    def __init__(self, message: str, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed


class BadPreflight(RequestError):
    """A preflight of a listed origin asks for what is not allowed."""


class BadParameter(RequestError):
    """A parameter of the request is not known or has a value that is not allowed."""


class MalformedUpload(RequestError):
    """The form cannot be parsed."""


class MissingFile(RequestError):
    """The form has no file, or something else in place of one."""


class EmptyFile(RequestError):
    """A file has no bytes."""


class BadTensor(RequestError):
    """An inference request is malformed, or the model does not take its tensors."""


class UnknownModel(RequestError):
    """An inference request names a model that is not being served."""


class Unauthorized(RequestError):
    """The request has no API key, or none that is accepted."""


class ForeignOrigin(RequestError):
    """A web page of another origin sent the request, and no setting allows that origin."""


class ForeignHost(RequestError):
    """The request is for a host that no setting allows."""


class UnboundedBody(RequestError):
    """The request does not say where its body ends."""


class UploadTooLarge(RequestError):
    """The upload has more bytes than a request may have."""


class UploadTooSlow(RequestError):
    """The upload arrives more slowly than the minimum rate."""


class UploadsFull(RequestError):
    """The upload budget is used up by other uploads; a retry can help once some are done."""


class TooManyFiles(RequestError):
    """The request has more files or parts than allowed."""


class TooManyPixels(RequestError):
    """The image has more pixels than allowed, by its header or once resized."""


class TooManyFrames(RequestError):
    """The animation has more frames than allowed."""


class TooComplex(RequestError):
    """The image takes more memory to decode than a decoder may have."""


class UnsupportedBody(RequestError):
    """The body is neither a form nor an image, or it or a part of it is compressed or encoded."""


class UnsupportedFormat(RequestError):
    """The file is not an image, or not in an accepted format."""


class UndecodableImage(RequestError):
    """The file is in an accepted format but damaged."""


class UnsupportedVariety(RequestError):
    """The file is in an accepted format, but in a variety of it that is not decoded.

    Args:
        message: as for `RequestError`.
        variety: the position in `imaging.varieties.VARIETIES`.
    """

    def __init__(self, message: str, variety: int = 0) -> None:
        super().__init__(message)
        self.variety = variety


class DecodeTimeout(RequestError):
    """The image takes longer to decode than allowed."""


class DecoderDied(RequestError):
    """Decoding the image ended the decoder process."""


class NoFeatureMaps(RequestError):
    """The model's file has no feature maps, which the request needs."""


class QueueFull(RequestError):
    """More images are waiting than allowed; a retry can help once some are done."""


class DeadlinePassed(RequestError):
    """The request's deadline passed before its result was ready."""

    @classmethod
    def before_answer(cls) -> "DeadlinePassed":
        """Returns the error with its one message."""
        return cls("The request's deadline passed before its answer was ready.")


class NotReady(RequestError):
    """The model is not loaded yet, or the server is shutting down."""


class InternalError(RequestError):
    """The server failed on the request, which is a defect."""
