"""The exported model gives PyTorch's answers and describes itself; one that does not is not written."""

import hashlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch import nn
from torchvision.models import DenseNet121_Weights

from export import export_onnx
from export.architectures import ARCHITECTURES, Architecture
from export.errors import ParityError, PhotographError
from export.export_onnx import main
from export.parity import LogitParity, compare_logits, compare_pixels
from export.photographs import find_photographs
from export.torch_to_onnx import export_graph
from serve.config.settings import ROOT
from serve.imaging.normalise import to_input
from tests import small_densenet as small
from tests.export.conftest import Network

LOGITS = np.array([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]], np.float32)


def test_logits_are_pytorchs_at_batch_sizes_1_and_3_and_7(exported: Path, network: nn.Module) -> None:
    session = ort.InferenceSession(exported)
    for size in (1, 3, 7):
        batch = torch.randn(size, 3, 224, 224, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            wanted = network(batch).numpy()
        got = session.run(None, {"input": batch.numpy()})[0]
        assert got.shape == wanted.shape == (size, 1000)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)


def test_logits_are_pytorchs_on_photographs_through_torchvisions_own_transforms(
    exported: Path, network: nn.Module, photographs: Path
) -> None:
    session = ort.InferenceSession(exported)
    preset = DenseNet121_Weights.IMAGENET1K_V1.transforms()
    for path in sorted(photographs.iterdir())[:10]:
        batch = preset(Image.open(path).convert("RGB"))[None]
        with torch.no_grad():
            wanted = network(batch).numpy()
        np.testing.assert_allclose(session.run(None, {"input": batch.numpy()})[0], wanted, rtol=0, atol=1e-4)


def test_the_batch_axis_is_dynamic_and_names_and_types_are_the_contracts(exported: Path) -> None:
    session = ort.InferenceSession(exported)
    assert [(v.name, v.type, v.shape) for v in session.get_inputs()] == [
        ("input", "tensor(float)", ["batch", 3, 224, 224])
    ]
    logits, *features = session.get_outputs()
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["batch", 1000])
    entry = json.loads(session.get_modelmeta().custom_metadata_map["features"])
    assert {value.name for value in features} == set(entry.values()) - {"NCHW"}


def test_the_file_describes_itself(exported: Path, weights: Path, photographs: Path) -> None:
    metadata = ort.InferenceSession(exported).get_modelmeta().custom_metadata_map
    card = {key: json.loads(value) for key, value in metadata.items()}
    assert (card["name"], card["architecture"]) == (exported.stem, "densenet121")
    assert card["variant"] == "fp32"
    assert card["weights"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert card["weights"]["source"]
    assert card["input"] == {"datatype": "FP32", "shape": [-1, 3, 224, 224]}
    assert card["input_size"] == [3, 224, 224]
    assert (card["resize"], card["crop"], card["interpolation"]) == (256, 224, "bilinear")
    assert card["mean"] == [0.485, 0.456, 0.406]
    assert card["std"] == [0.229, 0.224, 0.225]
    assert card["class_count"] == 1000
    assert card["opset"] == 20
    assert set(card["versions"]) == {"torch", "torchvision", "onnx", "onnxruntime"}
    assert card["versions"]["torch"] == torch.__version__
    assert card["parity"]["batch_sizes"] == [1, 3]
    assert card["parity"]["photographs"] == len(list(photographs.iterdir()))
    assert card["parity"]["top1_agreement"] == 1.0
    assert 0 < card["parity"]["max_abs_logit_difference"] <= card["parity"]["tolerance"] == 1e-4
    assert card["parity"]["max_abs_pixel_difference"] <= 1e-6


def test_nothing_of_the_building_machine_is_in_the_files(exported: Path, weights: Path) -> None:
    models = [exported, exported.with_suffix(".int8.onnx"), ROOT / "models" / "efficientnet_lite0.onnx"]
    for model in models if models[1].exists() else (models[0], models[2]):
        content = model.read_bytes()
        for trace in (
            str(ROOT),
            sys.prefix,
            "site-packages",
            "densenet.py",
            "stack_trace",
            str(Path.home()),
            str(weights.parent),
        ):
            assert trace.encode() not in content, model.name


def test_parity_figures_are_rounded_up_and_so_the_same_whatever_the_thread_count() -> None:
    figures = [
        LogitParity(max_abs_difference=value).to_card()["max_abs_logit_difference"] for value in (8.6e-6, 7.6e-6, 1e-5)
    ]
    assert figures == [1e-5, 1e-5, 1e-5]
    assert LogitParity(max_abs_difference=1.1e-5).to_card()["max_abs_logit_difference"] == 2e-5


def test_an_untrained_network_is_held_to_its_logits_own_spread(
    small_densenet: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(num_classes: int = small.CLASSES) -> nn.Module:
        network = small.build(num_classes)
        network.classifier.weight.data *= 100  # logits far from the usual ones
        return network

    monkeypatch.setitem(ARCHITECTURES, "small", replace(small_densenet.architecture, build=build))
    output = tmp_path / "untrained.onnx"
    flags = ["--model", "small", "--untrained", "--seed", "3", "--opset", "18"]
    assert main([*flags, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    for stage in ("load the weights", "export to ONNX", "check parity with PyTorch", "write the models"):
        assert re.search(rf"^{stage} +[0-9]+\.[0-9] s  .+$", said, re.MULTILINE)
    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(output).metadata_props}
    assert metadata["weights"] == {"source": "untrained, seed 3", "sha256": None, "licence": None}
    assert metadata["opset"] == 18
    assert metadata["parity"]["photographs"] == 3
    assert metadata["parity"]["tolerance"] > 1e-3  # other networks are held to 1e-4


def test_one_broken_weight_is_refused_and_leaves_no_file(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def export_with_one_broken_weight(network: nn.Module, side: int, opset: int) -> onnx.ModelProto:
        model = export_graph(network, side, opset)
        broken = next(entry for entry in model.graph.initializer if entry.name == "features.conv0.weight")
        values = numpy_helper.to_array(broken).copy()
        values[5, 1, 3, 3] += 0.1
        broken.CopyFrom(numpy_helper.from_array(values, broken.name))
        return model

    monkeypatch.setattr(export_onnx, "export_graph", export_with_one_broken_weight)
    output = tmp_path / "models" / "densenet121.onnx"
    output.parent.mkdir()
    output.write_bytes(b"the one before")
    assert main(["--weights", str(weights), "--output", str(output)]) == 1
    assert re.search(r"^export: parity: .*max \|Δ logit\| is [0-9.]+, more than 0\.0001$", capsys.readouterr().err)
    assert [path.name for path in output.parent.iterdir()] == ["densenet121.onnx"]
    assert output.read_bytes() == b"the one before"


def test_shapes_are_compared_first() -> None:
    with pytest.raises(ParityError, match=r"\[1, 6\], the ONNX model's \[1, 5\]"):
        compare_logits(LOGITS, LOGITS[:, :5], 1e-4, "case")


@pytest.mark.parametrize("change", [2e-4, -1.0, np.nan, np.inf])
def test_a_difference_over_the_tolerance_is_refused_with_its_figure(change: float) -> None:
    changed = LOGITS.copy()
    changed[0, 5] += change
    with pytest.raises(ParityError, match=r"case: max \|Δ logit\| is .+, more than 0.0001"):
        compare_logits(LOGITS, changed, 1e-4, "case")


def test_another_order_is_refused_unless_it_is_a_tie() -> None:
    """Two logits 1.5 tolerances apart can change places although neither moves by more than the tolerance."""
    wanted = np.array([[0.15, 0.0, -1.0, -2.0, -3.0, -4.0]], np.float32)
    swapped = np.array([[0.07, 0.08, -1.0, -2.0, -3.0, -4.0]], np.float32)
    with pytest.raises(ParityError, match=r"top five classes are \[0, 1, 2, 3, 4\] in PyTorch and \[1, 0, 2, 3, 4\]"):
        compare_logits(wanted, swapped, 0.1, "case")
    tied = np.array([[0.09, 0.0, -1.0, -2.0, -3.0, -4.0]], np.float32)
    assert compare_logits(tied, swapped, 0.1, "case") == pytest.approx(0.08)


def test_preprocessing_is_compared_pixel_by_pixel(
    densenet121: Architecture, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next(photographs.iterdir())
    _, difference = compare_pixels(path, densenet121.preset, densenet121.preprocessing)
    assert difference <= 1e-6
    off = np.float32(1e-5)
    monkeypatch.setattr("export.photographs.to_input", lambda *arguments: to_input(*arguments) + off)
    with pytest.raises(ParityError, match=rf"preprocessing: {path.name}: max \|Δ\| is 1e-05, more than 1e-06"):
        compare_pixels(path, densenet121.preset, densenet121.preprocessing)


def test_photographs_that_cannot_be_read_are_named(densenet121: Architecture, tmp_path: Path) -> None:
    with pytest.raises(
        PhotographError, match="no images in this folder or in the folders in it; images are files ending in"
    ):
        find_photographs([tmp_path])
    with pytest.raises(PhotographError, match="no such file or folder"):
        find_photographs([tmp_path / "none"])
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    assert find_photographs([tmp_path, bad]) == [bad, bad]
    with pytest.raises(PhotographError, match=r"bad\.jpg: The file is not an image"):
        compare_pixels(bad, densenet121.preset, densenet121.preprocessing)
