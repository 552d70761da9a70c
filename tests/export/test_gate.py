"""The checks of int8, the calibration record, and the messages when they refuse."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.engines import open_session
from export.errors import CalibrationError, GateError, QuantizationError
from export.evaluate import Comparison, compare, label_of, logits_of
from export.int8.calibration import Calibration, encode, load
from export.int8.choice import choose_part, choose_photographs
from export.int8.gate import require_accuracy, require_fit, require_unchanged
from tests.export.conftest import Network
from tests.export.test_quantize import calibrated
from tests.small_densenet import SPEC, batches

GOOD = Comparison(400, 0.868, 0.87, 0.99, 3.0, 0.1, 1.0)


def test_a_good_model_passes() -> None:
    require_accuracy(GOOD)
    require_accuracy(replace(GOOD, top1=None, reference_top1=None))
    require_accuracy(replace(GOOD, top1=0.88))  # better than fp32, as ties can fall


def test_the_bounds_themselves_pass() -> None:
    require_accuracy(replace(GOOD, agreement=0.97))
    require_accuracy(replace(GOOD, top1=0.865))
    few = replace(GOOD, photographs=99, mean_abs_difference=0.3)
    require_accuracy(few)
    require_accuracy(replace(few, agreement=0.5, top1=0.1))  # too few to say anything about accuracy
    require_accuracy(replace(GOOD, photographs=100, mean_abs_difference=3.0))  # enough to judge by accuracy instead


@pytest.mark.parametrize(
    ("worse", "words"),
    [
        (replace(GOOD, agreement=0.969), "agrees with fp32 on 96.9%, less than 97%"),
        (replace(GOOD, agreement=float("nan")), "agrees with fp32 on nan%"),
        (replace(GOOD, top1=0.864), "loses 0.60 points of top-1, more than 0.5"),
        (replace(GOOD, photographs=100, agreement=0.96), "agrees with fp32 on 96.0%, less than 97%"),
        (replace(GOOD, top1=0.8649), "loses 0.51 points of top-1, more than 0.5"),
        (
            replace(GOOD, photographs=3, mean_abs_difference=0.31),
            "mean .Δ logit. is 0.31 on 3 photographs, more than 0.3",
        ),
        (replace(GOOD, photographs=3, mean_abs_difference=float("nan")), "is nan on 3 photographs"),
    ],
)
def test_a_worse_one_is_refused_with_its_figure(worse: Comparison, words: str) -> None:
    with pytest.raises(GateError, match=words):
        require_accuracy(worse)


def test_with_sigmoid_the_likeliest_class_alone_does_not_pass() -> None:
    require_accuracy(replace(GOOD, mean_abs_difference=0.3), "sigmoid")
    with pytest.raises(GateError, match=r"mean .Δ logit. is 0.31 on 400 photographs, more than 0.3"):
        require_accuracy(replace(GOOD, mean_abs_difference=0.31), "sigmoid")
    with pytest.raises(GateError, match="agrees with fp32 on 96"):
        require_accuracy(replace(GOOD, agreement=0.96), "sigmoid")


def test_one_class_alone_is_compared_with_its_absence() -> None:
    reference = np.array([[2.0], [-2.0], [0.1], [-0.1]])
    figures = compare(reference * [[1], [-1], [-1], [1]], reference, [0, None, 0, None], "sigmoid")
    assert (figures.agreement, figures.clear_agreement) == (0.5, 0.5)
    assert (figures.reference_top1, figures.top1) == (1.0, 0.5)


def test_the_figures_of_a_comparison_are_correct() -> None:
    reference = np.array([[2.0, 1, 0], [0, 2, 1], [0, 1, 2], [3, 0, 0]], np.float32)
    other = reference.copy()
    other[0, 1] += 1.5  # changes the answer, to the right class
    figures = compare(other, reference, [1, 1, 0, None])
    assert (figures.photographs, figures.agreement) == (4, 0.75)
    assert figures.reference_top1 == pytest.approx(1 / 3)
    assert figures.top1 == pytest.approx(2 / 3)
    assert figures.top1_loss == pytest.approx(-1 / 3)
    assert (figures.max_abs_difference, figures.mean_abs_difference) == (1.5, 0.125)
    unlabelled = compare(other, reference, [None] * 4)
    assert (unlabelled.top1, unlabelled.reference_top1, unlabelled.top1_loss) == (None, None, None)
    assert figures.to_card() == {
        "photographs": 4,
        "top1": 0.6667,
        "fp32_top1": 0.3333,
        "agreement": 0.75,
        "clear_agreement": 0.75,
        "max_abs_logit_difference": 1.5,
        "mean_abs_logit_difference": 0.12,
    }
    assert replace(figures, agreement=2 / 3).to_card()["agreement"] == 0.6667
    for half_known in (replace(figures, top1=None), replace(figures, reference_top1=None)):
        assert half_known.top1_loss is None
    assert figures.reference_card() == {"photographs": 4, "top1": 0.3333}
    assert unlabelled.reference_card() == {"photographs": 4, "top1": None}


def test_a_clear_answer_is_a_tenth_of_probability_ahead() -> None:
    """So a near tie that falls the other way is not counted, and a clear answer that changes is."""
    reference = np.log(np.array([[0.5, 0.39, 0.11], [0.5, 0.41, 0.09], [0.1, 0.3, 0.6], [0.09, 0.5, 0.41]]))
    other = reference[:, [1, 0, 2]]  # changes all but the third answer
    figures = compare(other, reference + 700, [None] * 4)  # too large to be raised to a power
    assert (figures.agreement, figures.clear_agreement) == (0.25, 0.5)
    ties = compare(other[[1, 3]], reference[[1, 3]], [None] * 2)
    assert (ties.clear_agreement, ties.to_card()["clear_agreement"]) == (None, None)


def test_logits_are_in_the_order_of_the_images_and_progress_is_reported(small_densenet: Network) -> None:
    told: list[tuple[int, int]] = []
    model = small_densenet.model.SerializeToString()
    images = small_densenet.other_images[:3]
    got = logits_of(model, batches(images), SPEC, lambda *now: told.append(now), 3)
    together = open_session(model, 1).run(["logits"], {"input": images})[0]
    np.testing.assert_allclose(got, together, rtol=0, atol=1e-3)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_labels_come_from_file_or_folder_names() -> None:
    numbers = {"n01440764": 0}
    assert label_of(Path("photos/n01440764_tench.JPEG"), numbers) == 0
    assert label_of(Path("val/n01440764/ILSVRC2012.JPEG"), numbers) == 0
    assert label_of(Path("photos/cat.jpg"), numbers) is None
    assert label_of(Path("photos/n99999999_none.jpg"), numbers) is None
    assert label_of(Path("n01440764/n99999999_none.jpg"), numbers) == 0
    assert label_of(Path("n01440764/n01443537_goldfish.jpg"), numbers | {"n01443537": 1}) == 1  # the file's own name


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
    with pytest.raises(CalibrationError, match=r"record\.json cannot be read; record a new one with --calibrate DIR"):
        load(tmp_path / "record.json")
    with pytest.raises(CalibrationError, match=r"none\.json cannot be read"):
        load(tmp_path / "none.json")


def test_a_record_of_narrower_or_wider_ranges_does_not_fit(small_densenet: Network) -> None:
    calibration = calibrated(small_densenet)
    require_fit(small_densenet.model, small_densenet.calibration_batches(), calibration)

    def scaled(factor: float) -> Calibration:
        return replace(
            calibration, ranges={k: (low * factor, high * factor) for k, (low, high) in calibration.ranges.items()}
        )

    with pytest.raises(CalibrationError, match="of the channels leave their recorded ranges, more than 2%"):
        require_fit(small_densenet.model, small_densenet.calibration_batches(), scaled(0.5))
    with pytest.raises(CalibrationError, match="of its recorded range, less than 20%"):
        require_fit(small_densenet.model, small_densenet.calibration_batches(), scaled(10))


Ranges = dict[str, tuple[np.ndarray, np.ndarray]]
CHANNELS = 100


def fits(monkeypatch: pytest.MonkeyPatch, seen: Ranges, recorded: Ranges) -> None:
    """Check a record against ranges seen on some images."""
    monkeypatch.setattr("export.int8.gate.observe_ranges", lambda graph, images, progress: seen)
    require_fit(onnx.ModelProto(), [], Calibration("", {}, None, recorded))


def alike(low: float, high: float, channels: int = CHANNELS) -> Ranges:
    return {"tensor": (np.full(channels, low), np.full(channels, high))}


@pytest.mark.parametrize("end", [0, 1])
def test_two_channels_in_a_hundred_may_leave_their_range(end: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, recorded = alike(-1.0, 1.0), alike(-1.0, 1.0)
    seen["tensor"][end][:2] *= 5
    fits(monkeypatch, seen, recorded)
    seen["tensor"][end][2] *= 5
    with pytest.raises(CalibrationError, match=r"^3\.0% of the channels leave their recorded ranges, more than 2%$"):
        fits(monkeypatch, seen, recorded)
    seen["tensor"][end][:98] = (-5, 5)[end]
    with pytest.raises(CalibrationError, match=r"^98\.0% of the channels"):
        fits(monkeypatch, seen, recorded)


def test_a_range_has_headroom_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tenths of its width."""
    fits(monkeypatch, alike(-1.59, 1.59), alike(-1.0, 1.0))
    for low, high in ((-1.61, 1.0), (-1.0, 1.61)):
        with pytest.raises(CalibrationError, match=r"^100\.0% of the channels"):
            fits(monkeypatch, alike(low, high), alike(-1.0, 1.0))


def test_the_median_channel_uses_a_fifth_of_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    for unit in (1, 1e-3, 1e3):
        fits(monkeypatch, alike(0.25 * unit, 0.76 * unit), alike(0.0, 2.5 * unit))
        with pytest.raises(
            CalibrationError, match=r"^the median channel uses 19% of its recorded range, less than 20%$"
        ):
            fits(monkeypatch, alike(0.25 * unit, 0.73 * unit), alike(0.0, 2.5 * unit))
    fits(monkeypatch, alike(0.25, 0.75), alike(0.0, 2.5))  # a fifth
    dead, used = alike(0.0, 0.0, 40), alike(0.0, 1.0, 60)
    fits(
        monkeypatch, {"dead": dead["tensor"], "used": used["tensor"]}, {"dead": dead["tensor"], "used": used["tensor"]}
    )


def test_a_record_of_another_graph_or_other_channels_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        CalibrationError,
        match=r"^the recorded calibration is for another graph; record a new one with --calibrate DIR$",
    ):
        fits(monkeypatch, alike(0, 1), {**alike(0, 1), "more": (np.zeros(1), np.ones(1))})
    with pytest.raises(
        CalibrationError, match=r"^the recorded calibration has 1 channels for 'tensor', the graph has 100$"
    ):
        fits(monkeypatch, alike(0, 1), alike(0, 1, channels=1))


def test_a_rewrite_may_change_logits_by_a_thousandth(monkeypatch: pytest.MonkeyPatch) -> None:
    def logits(offset: float) -> None:
        answers = iter([np.zeros((2, 10)), np.array([[0.0] * 10, [0.0] * 9 + [offset]])])
        monkeypatch.setattr("export.int8.gate.logits_of", lambda *_: next(answers))
        require_unchanged(onnx.ModelProto(), onnx.ModelProto(), [], SPEC)

    logits(0.001)
    logits(-0.001)
    for offset in (0.0011, -0.0011, float("nan")):
        with pytest.raises(QuantizationError, match=r"max .Δ logit. is (0\.0011|nan), more than 0\.001"):
            logits(offset)


def test_photographs_to_calibrate_on_are_spread_over_the_folder() -> None:
    paths = [Path(f"{number:03}.jpg") for number in range(500)]
    chosen = choose_photographs(paths)
    assert chosen == paths[::5]
    assert choose_photographs(paths[:100]) == paths[:100]
    assert choose_photographs(paths[:150])[:4] == [paths[0], paths[1], paths[3], paths[4]]
    with pytest.raises(CalibrationError, match="99 photographs to calibrate on; at least 100"):
        choose_photographs(paths[:99])


def test_at_most_half_of_ones_own_photographs_are_calibrated_on() -> None:
    paths = [Path(f"{number:03}.jpg") for number in range(500)]
    assert choose_part(paths) == paths[::5]
    assert choose_part(paths[:41]) == [paths[position * 41 // 20] for position in range(20)]
    with pytest.raises(CalibrationError, match=r"at least 40, .* there are 39; name a folder with --photos"):
        choose_part(paths[:39])
    with pytest.raises(CalibrationError, match="there are none"):
        choose_part([])


def test_one_photograph_decides_nothing() -> None:
    """One of 150 is 0.67 points."""
    few = replace(GOOD, photographs=150, reference_top1=0.9)
    require_accuracy(replace(few, top1=0.9 - 1 / 150))
    with pytest.raises(GateError, match=r"loses 1\.33 points of top-1, more than 0\.7"):
        require_accuracy(replace(few, top1=0.9 - 2 / 150))


def test_labels_of_ones_own_come_from_the_folder_then_from_the_files_name() -> None:
    numbers = {"cat": 0, "golden retriever": 1, "n02099601": 1, "cat_big": 2}
    for name, label in (
        ("photos/cat/dog_1.jpg", 0),
        ("photos/cat/n01440764_tench.JPEG", 0),
        ("photos/golden retriever/1.jpg", 1),
        ("photos/golden retriever 12.jpg", 1),
        ("photos/cat.jpg", 0),
        ("photos/cat_1.jpg", 0),
        ("photos/cat_big-1.jpg", 2),
        ("photos/n02099601_1.jpg", 1),
        ("photos/catfish.jpg", None),
        ("cat/photos/1.jpg", None),
    ):
        assert label_of(Path(name), numbers) == label, name
