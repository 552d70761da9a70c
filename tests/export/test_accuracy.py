"""`benchmarks/accuracy.py` measures on photographs that the int8 model was not calibrated on."""

import shutil
from pathlib import Path

import pytest

from benchmarks.accuracy import held_out
from export import calibration as records
from export.int8 import RECORDS
from export.models import ARCHITECTURES

PHOTO = Path(__file__).resolve().parent.parent / "data/photos/cat.jpg"


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_photographs_that_were_calibrated_on_or_cannot_be_read_are_left_out(name: str, tmp_path: Path) -> None:
    calibrated = min(records.load(RECORDS / f"{name}.json").photographs)
    for file in (calibrated, "n02124075_mine.JPEG"):
        shutil.copy(PHOTO, tmp_path / file)
    (tmp_path / "n02124075_broken.JPEG").write_bytes(PHOTO.read_bytes()[:200])
    found = held_out(sorted(tmp_path.iterdir()), ARCHITECTURES[name])
    assert [path.name for path in found] == ["n02124075_mine.JPEG"]
