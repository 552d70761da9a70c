"""Says in one sentence why a command could not start."""

from typing import Final

from serve.errors import StartError

# If one of these is missing, this is not the project's own Python.
_PACKAGES: Final = {"numpy", "PIL", "onnxruntime", "starlette", "uvicorn", "httptools", "prometheus_client"}


def failure_reason(error: Exception) -> str:
    """Describes an error that stopped the start; the message of a `StartError` already says what to do."""
    if isinstance(error, StartError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in _PACKAGES:
        return f"this Python has no {error.name}; run 'make serve', or use .venv/runtime/bin/python, which it creates"
    return f"the start failed: {f'{type(error).__name__}: {error}'.removesuffix(': ')}"
