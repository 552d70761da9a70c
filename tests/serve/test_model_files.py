"""Tests that the model file is found by name and variant, and tests the embedded model."""

from dataclasses import replace
from pathlib import Path

import pytest

from serve.config.settings import MODELS, Config
from serve.errors import ModelError
from serve.model.classifier import load_classifier
from serve.model.files import EMBEDDED_MODEL, find_model, model_folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("densenet121.onnx", "densenet121.int8.onnx", "efficientnet_lite0.onnx"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("model", "variant", "file"),
    [
        ("auto", "auto", "densenet121.int8.onnx"),
        ("auto", "fp32", "densenet121.onnx"),
        ("densenet121", "int8", "densenet121.int8.onnx"),
        ("efficientnet_lite0", "auto", "efficientnet_lite0.onnx"),
    ],
)
def test_a_name_and_a_variant_are_a_file(model: str, variant: str, file: str, folder: Path) -> None:
    assert find_model(model, variant, folder) == folder / file


def test_without_int8_fp32_is_served_and_without_densenet_the_embedded_model(folder: Path) -> None:
    (folder / "densenet121.int8.onnx").unlink()
    assert find_model("auto", "auto", folder).name == "densenet121.onnx"
    (folder / "densenet121.onnx").unlink()
    assert find_model("auto", "auto", folder).name == f"{EMBEDDED_MODEL}.onnx"


def test_a_model_is_looked_for_in_each_folder_in_turn(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "efficientnet_lite0.onnx").touch()
    assert find_model("efficientnet_lite0", "auto", own, folder) == own / "efficientnet_lite0.onnx"
    assert find_model("densenet121", "auto", own, folder) == folder / "densenet121.int8.onnx"
    assert find_model("auto", "auto", own, folder) == folder / "densenet121.int8.onnx"  # it comes first by name
    with pytest.raises(ModelError, match=f"no model resnet in {own}/ or {folder}/; make one"):
        find_model("resnet", "auto", own, folder)


def test_only_a_model_that_was_named_is_taken_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_folders(None, "densenet121") == (Path("models"), MODELS)
    monkeypatch.chdir(MODELS.parent)
    assert model_folders(None, "densenet121") == (Path("models"),)
    assert model_folders(None, "auto") == (MODELS,)
    assert model_folders(Path("mine"), "auto") == model_folders(Path("mine"), "densenet121") == (Path("mine"), MODELS)


def test_the_setting_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.onnx").write_bytes((MODELS / f"{EMBEDDED_MODEL}.onnx").read_bytes())
    classifier = load_classifier(Config(model="mine", models=tmp_path))
    assert classifier.model.name == EMBEDDED_MODEL  # as its metadata says
    classifier.close()


def test_an_onnx_path_is_used_as_given() -> None:
    assert find_model("elsewhere/my.onnx", "auto", MODELS) == Path("elsewhere/my.onnx")


def test_a_missing_model_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model densenet121 in .*/; make one with 'make export' in a checkout"):
        find_model("densenet121", "auto", tmp_path)
    with pytest.raises(ModelError, match="no model resnet, fp32, in"):
        find_model("resnet", "fp32", tmp_path)


def test_the_embedded_model_classifies_a_cat_and_has_a_card(cat: bytes) -> None:
    classifier = load_classifier(Config(model=EMBEDDED_MODEL))
    assert "cat" in classifier.classify(cat, 1).scored[0].label.name
    card = classifier.model.card
    assert (card["name"], card["variant"]) == (EMBEDDED_MODEL, "int8")
    assert card["weights"]["licence"] == "Apache-2.0"
    assert card["mean"] == pytest.approx([127 / 255] * 3)
    assert card["accuracy"]["agreement"] >= 0.97
    assert card["accuracy"]["set"]
    assert card["measured"]["cpu"]["features"]
    assert {row["variant"] for row in card["measured"]["table"]} == {"fp32", "int8"}
    assert (MODELS / f"{EMBEDDED_MODEL}.onnx").stat().st_size <= 6_000_000


def test_a_variant_that_the_file_is_not_is_refused() -> None:
    with pytest.raises(ModelError, match="it is int8, not fp32"):
        load_classifier(replace(Config(model=EMBEDDED_MODEL), model_variant="fp32"))
