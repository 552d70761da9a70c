"""Settings of a test run: WEIGHTS, a state dict, and PHOTOS, a folder of photographs named `<wnid>_<label>.JPEG`."""

import os
import tempfile
from pathlib import Path

import pytest

# Before any test imports onnxruntime: its Linux wheel sends usage statistics by default.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# The developer's own settings must not reach the servers under test.
for name in [name for name in os.environ if name.startswith("SERVE_")]:
    del os.environ[name]
# Nor may the settings that autotune has saved for this machine.
_EMPTY = tempfile.NamedTemporaryFile(suffix=".toml")  # noqa: SIM115  kept until the tests end
os.environ["SERVE_CONFIG"] = _EMPTY.name


def pytest_report_header() -> list[str]:
    return [
        f"WEIGHTS: {os.environ.get('WEIGHTS') or 'not given; the export is tested with random weights'}",
        f"PHOTOS: {os.environ.get('PHOTOS') or 'not given; those of tests/data are used, accuracy is not tested'}",
    ]


def _setting(name: str) -> Path | None:
    value = os.environ.get(name)
    if not value:
        return None
    path = Path(value)
    if not path.exists():
        raise pytest.UsageError(f"{name}={value}: no such file or folder")
    return path.resolve()


@pytest.fixture(scope="session")
def weights_file() -> Path | None:
    return _setting("WEIGHTS")


@pytest.fixture(scope="session")
def photo_folder() -> Path | None:
    return _setting("PHOTOS")
