"""The gate, the record that calibration travels in, and what they say when they refuse."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.calibration import Calibration, encode, load
from export.errors import CalibrationError, GateError
from export.int8 import choose_photographs, require_accuracy, require_fit
from export.measure import Comparison, compare, label_of
from tests.export.conftest import Network
from tests.export.test_quantise import calibrated

GOOD = Comparison(400, 0.868, 0.87, 0.99, 3.0, 0.1)


def test_a_good_model_passes() -> None:
    require_accuracy(GOOD)
    require_accuracy(replace(GOOD, top1=None, reference_top1=None))
    require_accuracy(replace(GOOD, top1=0.88))  # better than fp32, as ties can fall


@pytest.mark.parametrize(
    ("worse", "words"),
    [
        (replace(GOOD, agreement=0.969), "agrees with fp32 on 96.9%, less than 97%"),
        (replace(GOOD, agreement=float("nan")), "agrees with fp32 on nan%"),
        (replace(GOOD, top1=0.864), "loses 0.60 points of top-1, more than 0.5"),
        (replace(GOOD, photographs=3, mean_abs_difference=0.31), "mean .Δ logit. is 0.31 on 3 photographs"),
        (replace(GOOD, photographs=3, mean_abs_difference=float("nan")), "is nan on 3 photographs"),
    ],
)
def test_a_worse_one_is_refused_with_its_figure(worse: Comparison, words: str) -> None:
    with pytest.raises(GateError, match=words):
        require_accuracy(worse)


def test_figures_are_what_they_say() -> None:
    reference = np.array([[2.0, 1, 0], [0, 2, 1], [0, 1, 2], [3, 0, 0]], np.float32)
    other = reference.copy()
    other[0, 1] += 1.5  # a flip, to the right class
    figures = compare(other, reference, [1, 1, 0, None])
    assert (figures.photographs, figures.agreement) == (4, 0.75)
    assert figures.reference_top1 == pytest.approx(1 / 3)
    assert figures.top1 == pytest.approx(2 / 3)
    assert figures.top1_loss == pytest.approx(-1 / 3)
    assert (figures.max_abs_difference, figures.mean_abs_difference) == (1.5, 0.125)
    assert compare(other, reference, [None] * 4).top1 is None


def test_labels_come_from_file_or_folder_names() -> None:
    numbers = {"n01440764": 0}
    assert label_of(Path("photos/n01440764_tench.JPEG"), numbers) == 0
    assert label_of(Path("val/n01440764/ILSVRC2012.JPEG"), numbers) == 0
    assert label_of(Path("photos/cat.jpg"), numbers) is None
    assert label_of(Path("photos/n99999999_none.jpg"), numbers) is None


def test_a_calibration_survives_its_file(small_densenet: Network, tmp_path: Path) -> None:
    calibration = calibrated(small_densenet)
    (tmp_path / "record.json").write_bytes(encode(calibration))
    again = load(tmp_path / "record.json")
    assert (again.source, again.photographs) == (calibration.source, calibration.photographs)
    for name, (low, high) in calibration.ranges.items():
        np.testing.assert_allclose(again.ranges[name], (low, high), rtol=5e-3)
    for mine, its in ((calibration.means, again.means), (calibration.active, again.active)):
        assert set(mine) == set(its)
        for name in mine:
            np.testing.assert_allclose(its[name], mine[name], rtol=5e-3)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"source": "x", "photographs": {}, "weights_sha256": "", "ranges": []}',
        '{"source": "x", "photographs": ["a.jpg"], "weights_sha256": "", "ranges": {}, "means": {}, "active": {}}',
        '{"source": "x"}',
    ],
)
def test_a_broken_record_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(CalibrationError, match=r"record\.json cannot be read; make one with --calibrate DIR"):
        load(tmp_path / "record.json")
    with pytest.raises(CalibrationError, match=r"none\.json cannot be read"):
        load(tmp_path / "none.json")


def test_a_record_of_narrower_or_wider_ranges_does_not_fit(small_densenet: Network) -> None:
    calibration = calibrated(small_densenet)
    require_fit(small_densenet.model, small_densenet.calibration_pictures(), calibration)

    def scaled(factor: float) -> Calibration:
        return replace(
            calibration, ranges={k: (low * factor, high * factor) for k, (low, high) in calibration.ranges.items()}
        )

    with pytest.raises(CalibrationError, match="of the channels leave their recorded ranges, more than 2%"):
        require_fit(small_densenet.model, small_densenet.calibration_pictures(), scaled(0.5))
    with pytest.raises(CalibrationError, match="of its recorded range, less than 20%"):
        require_fit(small_densenet.model, small_densenet.calibration_pictures(), scaled(10))


def test_photographs_to_calibrate_on_are_spread_over_the_folder() -> None:
    paths = [Path(f"{number:03}.jpg") for number in range(500)]
    chosen = choose_photographs(paths)
    assert chosen == paths[::5]
    with pytest.raises(CalibrationError, match="99 photographs to calibrate on; at least 100"):
        choose_photographs(paths[:99])
