"""Model files name their feature maps: what places add is the logit, and int8's embeddings are nearly fp32's."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn
from torchvision.models import MobileNetV2
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from export.architectures import Architecture
from export.embeddings import cosine_similarities, measure_embeddings
from export.engines import CPU, ENTRY, OPENVINO, open_session
from export.errors import ParityError
from export.features import name_features
from export.int8.pipeline import Int8Result, make_int8
from export.int8.qdq import to_qdq
from export.onnx_graph import FEATURES, Array, Graph
from export.photographs import read_photographs
from export.torch_to_onnx import export_graph
from serve.imaging.normalise import to_pixels
from serve.model import openvino_plugin
from serve.model.engines import EngineOptions
from serve.model.features import Features
from serve.model.session import Model, load_model
from tests import small_densenet as small
from tests.export.conftest import REAL, Network
from tests.export.test_quantize import calibrated
from tests.references import DATA

EXACT = 1e-3
USUAL = 64  # the largest logit of a trained network; those of random weights may be anything
LEAST_COSINE = 0.99  # of the embeddings of a photograph, DenseNet-121 in int8 and in fp32
NETWORKS = ["small_densenet", "small_mobilenet", "resnet18"]
FILES = ["fp32", "int8", "qdq", *(["openvino"] if not openvino_plugin.obstacle() else [])]


class Maps:
    """A model with its feature maps, as the server reads them."""

    def __init__(self, model: onnx.ModelProto, image: Array) -> None:
        self.session = open_session(model.SerializeToString(), 1)
        entry = json.loads(self.session.get_modelmeta().custom_metadata_map[FEATURES])
        names = [output.name for output in self.session.get_outputs()]
        self.features = Features.from_entry(entry, names, lambda wanted: self.session.run(wanted, {"input": image}))

    def run(self, image: Array) -> tuple[Array, Array]:
        """Returns the logits `[classes]` and the maps of one image."""
        logits, maps = self.session.run(["logits", self.features.output], {"input": image})
        return logits[0], maps[0]

    def embeddings(self, images: Iterable[Array]) -> Array:
        return np.stack([self.features.embedding(self.run(image)[1]) for image in images])


def inputs(network: Network, pixels: bool) -> Array:
    """A network's images `[N, 1, ...]`, as its fp32 model or its int8 models take them."""
    images = network.other_images
    return (to_pixels(images, network.architecture.preprocessing) if pixels else images)[:, None]


def made(network: Network, file: str) -> onnx.ModelProto:
    """Returns a model of a network, with its feature maps named: fp32, int8, or QDQ on the CPU or on OpenVINO."""
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    if file != "fp32":
        model = make_int8(model, network.architecture, calibrated(network))
    if file in {"qdq", "openvino"}:
        model = to_qdq(model)
    helper.set_model_props(model, {ENTRY: json.dumps(OPENVINO if file == "openvino" else CPU)})
    assert name_features(model)
    return model


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_mean_of_every_map_plus_the_bias_is_the_logit(name: str, file: str, request: pytest.FixtureRequest) -> None:
    network: Network = request.getfixturevalue(name)
    images = inputs(network, file != "fp32")
    maps = Maps(made(network, file), images[0])
    for image in images[:8]:
        logits, found = maps.run(image)
        for index, logit in enumerate(logits):
            added = maps.features.class_map(found, index)
            assert added.ndim == 2
            assert abs(added.mean() + maps.features.bias(index) - logit) <= EXACT


@pytest.mark.parametrize("file", FILES[1:])
@pytest.mark.parametrize("name", NETWORKS)
def test_int8_has_the_units_of_fp32(name: str, file: str, request: pytest.FixtureRequest) -> None:
    """Embeddings and maps are nearly the same numbers, and biases the same."""
    network: Network = request.getfixturevalue(name)
    exact, rounded = (inputs(network, pixels) for pixels in (False, True))
    fp32, int8 = Maps(made(network, "fp32"), exact[0]), Maps(made(network, file), rounded[0])
    assert np.array_equal(int8.features.biases, fp32.features.biases)
    wanted, got = fp32.embeddings(exact), int8.embeddings(rounded)
    assert np.abs(got - wanted).mean() <= 0.05 * np.abs(wanted).mean()
    assert cosine_similarities(got, wanted).min() >= 0.995
    for image, pixels in zip(exact[:4], rounded[:4], strict=True):
        (logits, maps), (_, int8_maps) = fp32.run(image), int8.run(pixels)
        best = int(logits.argmax())
        pair = [each.features.class_map(found, best) for each, found in ((fp32, maps), (int8, int8_maps))]
        assert np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1] >= 0.95


@pytest.mark.parametrize("file", ["fp32", "int8", "qdq"])
def test_naming_adds_outputs_and_an_entry_and_nothing_else(file: str, small_densenet: Network) -> None:
    model = made(small_densenet, file)
    plain = Graph(model).to_model()
    assert [output.name for output in plain.graph.output] == ["logits"]
    assert {entry.key for entry in plain.metadata_props} == {ENTRY}
    assert list(plain.graph.node) == list(model.graph.node)
    assert len(plain.graph.initializer) == len(model.graph.initializer)
    assert model.graph.output[0] == plain.graph.output[0]
    constants = {entry.name for entry in model.graph.initializer}
    maps, *others = (output.name for output in model.graph.output[1:])
    assert maps not in constants
    assert set(others) <= constants
    onnx.checker.check_model(model)


class Net(nn.Module):
    """Convolutions, and what follows them."""

    def __init__(self, tail: Callable[..., torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU())
        self.tail = tail
        self.layers = nn.ModuleDict(layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.tail(self.body(images), **self.layers)


def linear() -> nn.Module:
    return nn.Linear(8, 5)


CHOICE = torch.tensor([3, 2, 1, 0, 4, 5, 6, 7])
BOTTLENECK = partial(MBConvConfig, expand_ratio=2, kernel=3, stride=2, num_layers=1, width_mult=1.0, depth_mult=1.0)
END_IN_A_MEAN_AND_A_LINEAR_LAYER: dict[str, Callable[[], nn.Module]] = {
    "ResNet": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5),
    "RegNet": lambda: RegNet(BlockParams([1, 1], [8, 16], [8, 8], [1, 1], [2, 2], se_ratio=0.25), num_classes=5),
    "EfficientNet": lambda: EfficientNet([BOTTLENECK(input_channels=8, out_channels=16)], 0.2, num_classes=5),
    "MobileNetV2": lambda: MobileNetV2(num_classes=5, inverted_residual_setting=[[2, 16, 1, 2]]),
    "Swin": lambda: SwinTransformer([4, 4], 8, [1, 1], [1, 1], [4, 4], num_classes=5),
    "mean over the middle axes": lambda: Net(
        lambda maps, last: last(maps.permute(0, 2, 3, 1).mean((1, 2))), last=linear()
    ),
    "mean that keeps its axes": lambda: Net(
        lambda maps, last: last(maps.mean((2, 3), keepdim=True).flatten(1)), last=linear()
    ),
    "no bias": lambda: Net(lambda maps, last: last(maps.mean((2, 3))), last=nn.Linear(8, 5, bias=False)),
}
END_OTHERWISE: dict[str, Callable[[], nn.Module]] = {
    "MobileNetV3": lambda: MobileNetV3(
        [InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1.0)], 32, num_classes=5
    ),
    "ConvNeXt": lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5),
    "ViT": lambda: VisionTransformer(64, 16, 1, 1, 8, 16, num_classes=5),
    "maps of 2 × 2, as VGG's of 7 × 7": lambda: Net(
        lambda maps, last: last(nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1)), last=nn.Linear(8 * 4, 5)
    ),
    "some channels": lambda: Net(lambda maps, last: last(maps.mean((2, 3))[:, CHOICE]), last=nn.Linear(8, 5)),
    "greatest value": lambda: Net(lambda maps, last: last(maps.amax((2, 3))), last=linear()),
    "mean over one axis": lambda: Net(lambda maps, last: last(maps.mean(3).flatten(1)), last=nn.Linear(8 * 16, 5)),
    "softmax": lambda: Net(lambda maps, last: last(maps.mean((2, 3))).softmax(1), last=linear()),
    "two layers": lambda: Net(
        lambda maps, last, first: last(first(maps.mean((2, 3))).relu()), first=nn.Linear(8, 8), last=linear()
    ),
}


@pytest.mark.parametrize("name", END_IN_A_MEAN_AND_A_LINEAR_LAYER)
def test_networks_are_recognised_by_how_they_end(name: str) -> None:
    torch.manual_seed(0)
    network = END_IN_A_MEAN_AND_A_LINEAR_LAYER[name]().eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)  # because torchvision's biases are zero before training
    model = export_graph(network, 64)
    assert name_features(model)
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)
    maps = Maps(model, image)
    logits, found = maps.run(image)
    added = [maps.features.class_map(found, index) for index in range(len(logits))]
    assert {each.shape for each in added} == {found.shape[1:] if maps.features.channel_axis == 0 else found.shape[:2]}
    means = [each.mean() + maps.features.bias(index) for index, each in enumerate(added)]
    np.testing.assert_allclose(means, logits, rtol=0, atol=EXACT)
    assert (maps.features.biases == 0).all() == (name == "no bias")


@pytest.mark.parametrize("name", END_OTHERWISE)
def test_other_networks_have_no_feature_maps(name: str) -> None:
    model = export_graph(END_OTHERWISE[name]().eval(), 64)
    before = model.SerializeToString()
    assert not name_features(model)
    assert model.SerializeToString() == before


def test_a_linear_layer_that_does_more_is_not_taken(small_mobilenet: Network) -> None:
    for attributes in ({"alpha": 0.5, "transB": 1}, {"beta": 2.0, "transB": 1}):
        model = onnx.ModelProto()
        model.CopyFrom(small_mobilenet.model)
        gemm = model.graph.node[-1]
        del gemm.attribute[:]
        gemm.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        assert not name_features(model)


def card_of(model: onnx.ModelProto) -> dict[str, Any]:
    return {entry.key: json.loads(entry.value) for entry in model.metadata_props}


def test_the_card_has_length_norm_and_int8s_cosine(small_densenet: Network, tmp_path: Path) -> None:
    spec, paths = small_densenet.architecture.preprocessing, [tmp_path / f"{number}.png" for number in range(8)]
    for path, image in zip(paths, small.draw(8, 3), strict=True):
        image.save(path)
    fp32, int8 = made(small_densenet, "fp32"), made(small_densenet, "int8")
    measure_embeddings(fp32, [Int8Result(model=int8), Int8Result()], paths, spec)
    exact, rounded = (card_of(model)["embedding"] for model in (fp32, int8))
    assert exact.keys() == {"length", "norm"}
    assert exact["length"] == rounded["length"] == Graph(fp32).constants["classifier.weight"].shape[1]
    assert rounded["norm"] == pytest.approx(exact["norm"], rel=0.05)
    assert 0.99 <= rounded["fp32_cosine"]["lowest"] <= rounded["fp32_cosine"]["mean"] <= 1


def test_nothing_is_measured_without_feature_maps(small_densenet: Network, capsys: pytest.CaptureFixture[str]) -> None:
    model = Graph(small_densenet.model).to_model()
    measure_embeddings(model, [Int8Result()], [], small_densenet.architecture.preprocessing)
    assert not model.metadata_props
    assert capsys.readouterr().out == ""


def test_feature_maps_that_do_not_give_the_logits_end_the_export(small_densenet: Network) -> None:
    model = made(small_densenet, "fp32")
    entry = card_of(model)[FEATURES]
    helper.set_model_props(model, {FEATURES: json.dumps({**entry, "bias": "features.norm5.bias"})})
    model.graph.output.append(helper.make_tensor_value_info("features.norm5.bias", onnx.TensorProto.FLOAT, [52]))
    paths = sorted((DATA / "photos").iterdir())
    with pytest.raises(ParityError, match="parity: its metadata entry 'features' has bias="):
        measure_embeddings(model, [Int8Result()], paths, small_densenet.architecture.preprocessing)


def exported_models(exported: Path) -> list[Model]:
    """The files of `exported`, as the server loads them: fp32, and int8 and QDQ if they passed the gate."""
    files = [(exported, CPU), (exported.with_suffix(".int8.onnx"), CPU), (exported.with_suffix(".qdq.onnx"), OPENVINO)]
    return [load_model(path, EngineOptions(), engine) for path, engine in files if path.exists()]


def test_exported_files_add_up_on_photographs_and_agree(
    exported: Path, photographs: Path, densenet121: Architecture
) -> None:
    models = exported_models(exported)
    assert len(models) == 2 + (not openvino_plugin.obstacle()) or not REAL
    seen: list[list[Array]] = [[] for _ in models]
    for image in read_photographs(sorted(photographs.iterdir())[:20], densenet121.preprocessing):
        for model, embeddings in zip(models, seen, strict=True):
            features = model.features
            assert features
            batch = to_pixels(image, densenet121.preprocessing) if model.takes_pixels else image
            (logits,), (maps,) = model.run(batch)
            sums = [features.class_map(maps, index).mean() + features.bias(index) for index in range(len(logits))]
            assert np.abs(sums - logits).max() <= EXACT * max(1, np.abs(logits).max() / USUAL)
            embeddings.append(features.embedding(maps))
            assert model.card["embedding"]["length"] == features.length == len(embeddings[-1]) == 1024
    wanted, *others = (np.stack(embeddings) for embeddings in seen)
    norm = models[0].card["embedding"]["norm"]
    assert np.linalg.norm(wanted, axis=1).mean() == pytest.approx(norm, rel=0.2)
    for model, got in zip(models[1:], others, strict=True):
        assert cosine_similarities(got, wanted).min() >= LEAST_COSINE
        assert model.card["embedding"]["fp32_cosine"]["lowest"] >= LEAST_COSINE
