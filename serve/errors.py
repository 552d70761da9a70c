"""Everything that can go wrong, in the domain's own words; no module here knows HTTP.

Each exception's message is the whole sentence a person gets to read: what was wrong and, where a limit was broken,
which one. A `RequestError` ends one request (`problems.py` says with which status), a `StartError` ends the process.
"""


class ServeError(Exception):
    """Base of all errors this package raises on purpose."""


class StartError(ServeError):
    """The server cannot start: a setting, the model file, the class index or the address is unusable."""


class ConfigError(StartError):
    """A flag or an environment variable has a value that is not allowed."""


class ModelError(StartError):
    """The model file is missing, unreadable, does not describe itself, or is not an image classifier."""


class ClassIndexError(StartError):
    """The class index is missing, malformed, or does not fit the model's class count."""


class OutputError(StartError):
    """A file of records cannot be written, or not be gone on with."""


class RequestError(ServeError):
    """Base of the errors that end one request.

    retry_after: seconds after which trying again can help, where this very error knows better than the table.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BadParameter(RequestError):
    """A query parameter has a value that is not allowed."""


class MalformedUpload(RequestError):
    """The multipart body cannot be parsed."""


class MissingFile(RequestError):
    """The multipart body has no part named `file`."""


class EmptyFile(RequestError):
    """A file of no bytes."""


class BadTensor(RequestError):
    """An inference request is malformed, or its tensors are not what the model takes."""


class UnknownModel(RequestError):
    """An inference request is for a model that is not being served."""


class Unauthorized(RequestError):
    """The request carries no API key, or none that is accepted."""


class ForeignOrigin(RequestError):
    """A browser sent the request for a page of another origin, which no setting lists."""


class ForeignHost(RequestError):
    """The request is for a host that the server does not answer to."""


class UnboundedBody(RequestError):
    """Neither a length nor chunked encoding bounds the body."""


class UploadTooLarge(RequestError):
    """More bytes than a request may have."""


class UploadTooSlow(RequestError):
    """The body's bytes come more slowly than they may."""


class UploadsFull(RequestError):
    """Other uploads hold as many bytes as may be held at once; trying again makes sense once some are done."""


class TooManyFiles(RequestError):
    """More files, or more parts, than a request may have."""


class TooManyPixels(RequestError):
    """More pixels than an image may have, by its own header or once resized."""


class TooManyFrames(RequestError):
    """More frames than an animation may have."""


class TooComplex(RequestError):
    """A picture that would take more work than its size warrants: scans, strips, or simply time."""


class UnsupportedBody(RequestError):
    """The request's body is neither multipart nor an image."""


class UnsupportedFormat(RequestError):
    """The file is not an image, or an image in a format that is not accepted."""


class UndecodableImage(RequestError):
    """The file is in an accepted format but cannot be decoded."""


class QueueFull(RequestError):
    """More pictures are waiting than may; trying again makes sense once some are done."""


class DeadlinePassed(RequestError):
    """The request's own deadline passed before its answer."""

    @classmethod
    def before_answer(cls) -> "DeadlinePassed":
        """The one sentence there is to say of it."""
        return cls("The request's deadline passed before its answer was ready.")


class NotReady(RequestError):
    """The model is not loaded yet, or the server is shutting down."""
