"""The errors that end a measurement."""


class CannotMeasure(Exception):
    """Something that the measurement needs is missing; the message says what to do."""


class LoadFailed(Exception):
    """The load generator printed no figures."""


class ServerFailed(Exception):
    """A server did not start, or its first answer was wrong."""


class WorkerFailed(Exception):
    """A worker ended, or gave the wrong class."""
