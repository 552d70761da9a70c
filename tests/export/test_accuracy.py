"""`benchmarks/accuracy.py` measures on photographs that were not used for calibration."""

import shutil
from pathlib import Path

import pytest

from benchmarks.accuracy import held_out
from export.architectures import ARCHITECTURES
from export.files import sha256_of
from export.int8 import calibration as records

PHOTOS = Path(__file__).resolve().parent.parent / "data/photos"
PHOTO, CALIBRATED = PHOTOS / "cat.jpg", PHOTOS / "coffee.jpg"


@pytest.mark.parametrize("name", sorted(path.stem for path in records.RECORDS.glob("*.json")))
def test_photographs_that_were_calibrated_on_or_cannot_be_read_are_left_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A photograph used for calibration is recognised by its content, whatever its name is."""
    file = records.record_file(name)
    record = records.load(file)
    calibrated_name = min(record.photographs)
    record.photographs |= {calibrated_name: sha256_of(CALIBRATED)}
    monkeypatch.setattr(records, "load", lambda path: {file: record}[path])
    shutil.copy(CALIBRATED, tmp_path / "n02124075_renamed.JPEG")
    shutil.copy(PHOTO, tmp_path / calibrated_name)
    (tmp_path / "n02124075_broken.JPEG").write_bytes(PHOTO.read_bytes()[:200])
    found = held_out(sorted(tmp_path.iterdir()), ARCHITECTURES[name])
    assert [path.name for path in found] == [calibrated_name]
