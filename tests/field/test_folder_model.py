"""`classify` says which model it uses, and works with models of fewer than five classes."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from serve.commands import classify as command
from serve.config.settings import MODELS
from serve.model.files import fallback_warning
from tests.serve.conftest import PHOTOS
from tests.serve.test_classify import MODEL, classify, records
from tests.tiny_model import THREE_CLASSES

CAT = PHOTOS / "cat.jpg"
FALLBACK = (
    "DenseNet-121 is not exported; using the small embedded model efficientnet_lite0. To export it, in a "
    "checkout: make export WEIGHTS=PATH\n"
)


@pytest.fixture
def three(tmp_path: Path) -> list[object]:
    """The flags of a model of three classes."""
    index = tmp_path / "index.json"
    index.write_text(json.dumps({str(place): [f"n{place}", f"class_{place}"] for place in range(3)}))
    return ["--model", THREE_CLASSES, "--class-index", index]


def test_standard_error_names_the_model_and_standard_output_does_not(tmp_path: Path) -> None:
    status, printed, error = classify(CAT)
    assert (status, len(records(printed)), error.startswith(MODEL)) == (0, 1, True)
    for form in ("--csv", "--table"):
        assert "model:" not in classify(CAT, form)[1]


def test_the_embedded_model_is_used_with_its_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(MODELS / "efficientnet_lite0.onnx", tmp_path)
    monkeypatch.setattr("serve.model.files.MODELS", tmp_path)
    assert command.main([str(CAT), "--jsonl"], {}) == 0
    shown = capfd.readouterr()
    assert shown.err.startswith(f"{FALLBACK}model: efficientnet_lite0, int8\n1 file in ")
    assert json.loads(shown.out)["model"] == "efficientnet_lite0"
    assert command.main([str(CAT), "--jsonl", "--model", "efficientnet_lite0"], {}) == 0
    assert capfd.readouterr().err.startswith("model: efficientnet_lite0, int8\n")  # as it was chosen


def test_only_the_model_that_was_not_chosen_has_a_warning() -> None:
    assert fallback_warning("auto", "efficientnet_lite0") == FALLBACK.rstrip("\n")
    assert fallback_warning("efficientnet_lite0", "efficientnet_lite0") == ""
    assert fallback_warning("auto", "densenet121") == ""


@pytest.mark.parametrize("form", ["--jsonl", "--csv", "--table"])
def test_a_model_of_three_classes_has_three(three: list[object], form: str) -> None:
    status, printed, error = classify(*three, CAT, form)
    assert status == 0, error
    if form == "--jsonl":
        assert len(records(printed)[0]["top_k"]) == 3
    elif form == "--csv":
        header, row = csv.reader(io.StringIO(printed))
        assert (len(header), header[-2:], row[-1]) == (12, ["probability_3", "model"], "three")
    else:
        assert printed.count("%") == 3


def test_a_model_of_three_classes_is_resumed_evaluated_and_shown(three: list[object], tmp_path: Path) -> None:
    output, page = tmp_path / "output.csv", tmp_path / "page.html"
    assert classify(*three, CAT, "--output", output, "--html", page)[0] == 0
    status, _, error = classify(*three, CAT, CAT, "--output", output, "--html", page, "--resume")
    assert (status, "1 from the earlier run" in error) == (0, True), error
    assert classify(*three, CAT, "--evaluate")[0] == 0


@pytest.mark.parametrize(("flags", "most"), [([], 1000), (["three"], 3)])
@pytest.mark.parametrize("given", [0, -1, "more"])
def test_a_top_k_that_the_model_does_not_have_is_told(
    three: list[object], flags: list[str], most: int, given: object
) -> None:
    top_k = most + 1 if given == "more" else given
    status, printed, error = classify(*(three if flags else []), CAT, f"--top-k={top_k}")
    assert (status, printed) == (2, "")
    assert error == (
        f"serve: --top-k={top_k}: not a whole number from 1 to {most}, the number of the model's classes\n"
    )
