"""Chooses the photographs to calibrate on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from export.errors import CalibrationError
from export.photographs import spread

CALIBRATION_PHOTOGRAPHS: Final = 100
MIN_PHOTOGRAPHS: Final = 40  # of one's own: half of them to calibrate on, half to compare on


def choose_photographs(paths: Sequence[Path]) -> list[Path]:
    """Chooses `CALIBRATION_PHOTOGRAPHS` to calibrate on, spread evenly over those given.

    Raises:
        CalibrationError: there are too few.
    """
    if len(paths) < CALIBRATION_PHOTOGRAPHS:
        raise CalibrationError(
            f"{len(paths)} photographs to calibrate on; at least {CALIBRATION_PHOTOGRAPHS} are needed"
        )
    return spread(paths, CALIBRATION_PHOTOGRAPHS)


def choose_part(paths: Sequence[Path]) -> list[Path]:
    """Chooses a part of the user's photographs to calibrate on: `CALIBRATION_PHOTOGRAPHS`, but at most half of them.

    Raises:
        CalibrationError: there are too few.
    """
    if len(paths) < MIN_PHOTOGRAPHS:
        raise CalibrationError(
            f"int8 needs photographs such as the model will see, at least {MIN_PHOTOGRAPHS}, to calibrate on a part "
            f"and compare on the rest; there are {len(paths) or 'none'}; name a folder with --photos"
        )
    return spread(paths, min(CALIBRATION_PHOTOGRAPHS, len(paths) // 2))
