"""Says in one sentence why a command could not start."""

from typing import Final

from serve.errors import StartError

# The first packages that a Python other than the project's own is found to lack.
_PACKAGES: Final = {"numpy", "PIL", "onnxruntime", "starlette", "uvicorn", "httptools", "prometheus_client"}


def failure_reason(error: Exception) -> str:
    """Describes an error that stopped a start; what to do is in the errors raised on purpose already."""
    if isinstance(error, StartError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in _PACKAGES:
        return f"this Python has no {error.name}; run 'make serve', or use .venv/runtime/bin/python, which it creates"
    return f"the start failed: {f'{type(error).__name__}: {error}'.removesuffix(': ')}"
