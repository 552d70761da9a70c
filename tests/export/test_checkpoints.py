"""Weights are found in whatever a training script saved; a file without usable ones is refused in one line."""

import argparse
import datetime
import io
import os
import pathlib
import pickle
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from export.architectures import ARCHITECTURES
from export.errors import WeightsError
from export.export_onnx import main
from export.files import ROOT
from export.weights import build_network, read_weights, recognise
from tests import small_densenet as small
from tests.export.conftest import Network
from tests.small_densenet import build

State = dict[str, Tensor]
CLASSES = 3


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(3)
    return build(CLASSES).eval()


@pytest.fixture
def state(trained: nn.Module) -> State:
    return dict(trained.state_dict())


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def assert_read(path: Path, trained: nn.Module, densenet: Network) -> None:
    """The file gives the logits of the network that was saved."""
    network = build_network(densenet.architecture, read_weights(path))
    images = torch.from_numpy(small.images(2, 4))
    with torch.no_grad():
        assert torch.equal(network(images), trained(images))


def contained_in(name: str) -> Callable[[State], Any]:
    return lambda state: {name: state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}


CONTAINERS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "ordered": OrderedDict,
    **{name: contained_in(name) for name in ("state_dict", "model", "model_state_dict", "net", "ema")},
    "ema in a container": lambda state: {"ema": {"module": state, "decay": 0.999}},
    "model rather than ema": lambda state: {"ema": {k: v * 0 for k, v in state.items()}, "model": state},
    "Lightning": lambda state: {
        "epoch": 4,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed("model.", state) | {"criterion.pos_weight": torch.ones(CLASSES)},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "dirpath": "/x"}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 0.1},
    },
    "torchvision's references": lambda state: {
        "model": state,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"last_epoch": 2},
        "epoch": 2,
        "args": argparse.Namespace(data_path=pathlib.Path("/data"), lr=0.1, started=datetime.datetime(2026, 1, 2)),
        "model_ema": prefixed("module.", state) | {"n_averaged": torch.tensor(7)},
    },
    "averaged model": lambda state: prefixed("module.", state) | {"n_averaged": torch.tensor(7)},
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_weights_are_found_in_every_container(
    container: str, suffix: str, trained: nn.Module, state: State, small_densenet: Network, tmp_path: Path
) -> None:
    path = tmp_path / f"mine{suffix}"
    torch.save(CONTAINERS[container](state), path)
    assert_read(path, trained, small_densenet)


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "model.", "net.", "backbone.", "_orig_mod."),
        *("module.model.", "_orig_mod.module.", "model.net.backbone.", "net._orig_mod.", "module.densenet121."),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefixes_of_wrappers_are_removed(
    prefix: str, suffix: str, trained: nn.Module, state: State, small_densenet: Network, tmp_path: Path
) -> None:
    path = tmp_path / f"mine{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(prefixed(prefix, state), path)
    assert_read(path, trained, small_densenet)


def test_a_head_beside_the_backbone_and_compiled_parts_are_found(
    trained: nn.Module, state: State, small_densenet: Network, tmp_path: Path
) -> None:
    split = {
        key if key.startswith("classifier") else "backbone." + key.replace("features.", "features._orig_mod.", 1): value
        for key, value in state.items()
    }
    torch.save(split, tmp_path / "mine.pth")
    assert_read(tmp_path / "mine.pth", trained, small_densenet)


HEADS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "Linear": lambda linear: linear,
    "Dropout, Linear": lambda linear: nn.Sequential(nn.Dropout(), linear),
    "Linear, Sigmoid": lambda linear: nn.Sequential(linear, nn.Sigmoid()),
    "Flatten, ReLU, Dropout, Linear": lambda linear: nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Dropout(), linear),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("classes", [1, 2, 14])
def test_heads_of_one_linear_give_its_logits(head: str, classes: int, small_densenet: Network, tmp_path: Path) -> None:
    torch.manual_seed(4)
    network = build(classes).eval()
    linear = network.classifier
    images = torch.from_numpy(small.images(2, 4))
    with torch.no_grad():
        logits = network(images)
    network.classifier = HEADS[head](linear)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    read = build_network(small_densenet.architecture, read_weights(tmp_path / "mine.pth"))
    with torch.no_grad():
        assert torch.equal(read(images), logits)


def test_a_linear_without_bias_has_a_bias_of_zeros(state: State, small_densenet: Network, tmp_path: Path) -> None:
    del state["classifier.bias"]
    torch.save(state, tmp_path / "mine.pth")
    network = build_network(small_densenet.architecture, read_weights(tmp_path / "mine.pth"))
    assert torch.equal(network.get_parameter("classifier.bias"), torch.zeros(CLASSES))


@pytest.mark.parametrize("written", [".pth", ".safetensors"])
def test_a_file_is_read_by_its_content_whatever_its_suffix(
    written: str, trained: nn.Module, state: State, small_densenet: Network, tmp_path: Path
) -> None:
    path = tmp_path / ("mine.safetensors" if written == ".pth" else "mine.pth")
    (save_file if written == ".safetensors" else torch.save)(state, path)
    assert_read(path, trained, small_densenet)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_weights_of_another_precision_are_converted(
    dtype: torch.dtype, state: State, small_densenet: Network, tmp_path: Path
) -> None:
    torch.save(
        {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()},
        tmp_path / "m.pth",
    )
    network = build_network(small_densenet.architecture, read_weights(tmp_path / "m.pth"))
    assert {value.dtype for value in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["densenet121", "densenet161", "densenet169", "densenet201"])
def test_densenets_are_recognised_by_their_keys(name: str, tmp_path: Path) -> None:
    architecture = ARCHITECTURES[name]
    torch.save(prefixed("module.", architecture.build(num_classes=5).state_dict()), tmp_path / "mine.pth")
    weights = read_weights(tmp_path / "mine.pth")
    assert recognise(weights) is architecture
    assert build_network(architecture, weights).get_parameter("classifier.bias").shape == (5,)


def test_class_to_idx_of_the_training_script_is_read(state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state, "class_to_idx": {"dog": 1, "cat": 0, "bird": 2}}, tmp_path / "mine.pth")
    assert read_weights(tmp_path / "mine.pth").class_to_idx == {"dog": 1, "cat": 0, "bird": 2}


@pytest.mark.parametrize("classes", [{("cat",): 0}, {"cat": 0.0}, {"cat": "0"}, ["cat"], "cat"])
def test_other_entries_called_class_to_idx_are_no_labels(classes: Any, state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state, "class_to_idx": classes}, tmp_path / "mine.pth")
    assert read_weights(tmp_path / "mine.pth").class_to_idx == {}


def test_paths_of_other_systems_and_pythons_are_plain_data(
    state: State, trained: nn.Module, small_densenet: Network, tmp_path: Path
) -> None:
    """Python 3.13 pickles paths as `pathlib._local.PosixPath`, Windows as `pathlib.WindowsPath`."""
    torch.save({"model": state, "args": argparse.Namespace(data=pathlib.PurePosixPath("a"))}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for other in (b"pathlib._local\nPosixPath", b"pathlib\nWindowsPath", b"pathlib._local\nPurePosixPath"):
        with zipfile.ZipFile(tmp_path / "mine.pth", "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content.replace(b"pathlib\nPurePosixPath", other))
        assert_read(tmp_path / "mine.pth", trained, small_densenet)


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not run",)


def other_zip() -> bytes:
    content = io.BytesIO()
    np.savez(content, a=np.ones(2))
    return content.getvalue()


def torchscript(state: State, path: Path) -> None:
    with pytest.warns(FutureWarning):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def cut_off(state: State, path: Path) -> None:
    content = io.BytesIO()
    torch.save(state, content)
    path.write_bytes(content.getvalue()[:-2000])


def cut_off_safetensors(state: State, path: Path) -> None:
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-2000])


def damaged(state: State, path: Path) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes().replace(b"PK\1\2", b"PK\0\0"))  # the entries of the archive's list


def compressed_zeros(state: State, path: Path) -> None:
    content = io.BytesIO()
    torch.save(state | {"zeros": torch.zeros(10**6)}, content)
    with zipfile.ZipFile(content) as saved, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in saved.namelist():
            archive.writestr(name, saved.read(name))


def within_itself(state: State) -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def with_head(weight: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: state | {"classifier.weight": weight(state["classifier.weight"])}


def quantized(state: State, path: Path) -> None:
    with pytest.warns(UserWarning, match="deprecated"):
        head = torch.quantize_per_tensor(state["classifier.weight"], 0.1, 0, torch.qint8)
    torch.save(state | {"classifier.weight": head}, path)


def saving(change: Callable[[State], Any]) -> Callable[[State, Path], object]:
    return lambda state, path: torch.save(change(state), path)


def headless(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("classifier")}


BROKEN: dict[str, tuple[str, Callable[[State, Path], object], str]] = {
    "empty": ("a.pth", lambda state, path: path.touch(), "the file is empty; copy it again"),
    "cut off": ("a.pth", cut_off, "the file is cut off or damaged; copy or download it again"),
    "damaged": ("a.pth", damaged, "the file is cut off or damaged"),
    "compressed": ("a.pth", compressed_zeros, "unpacks to more than 4 times its size"),
    "cut off safetensors": ("a.safetensors", cut_off_safetensors, "cannot be read as safetensors: .* again"),
    "Git LFS": (
        "a.pth",
        lambda state, path: (
            path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n") and None
        ),
        "pointer of Git LFS.*'git lfs pull'",
    ),
    "web page": (
        "a.pth",
        lambda state, path: path.write_text("<!DOCTYPE html><html>"),
        "a web page.*download",
    ),
    "Keras": ("a.h5", lambda state, path: path.write_bytes(b"\x89HDF\r\n\x1a\n123"), "HDF5.*only PyTorch's"),
    "other zip": (
        "a.pth",
        lambda state, path: path.write_bytes(other_zip()),
        "zip archive, but not.*torch.save",
    ),
    "TorchScript": ("a.pt", torchscript, r"TorchScript model.*save one:"),
    "ONNX": ("a.onnx", lambda state, path: path.write_bytes(b"\x08\x08"), "is a model already; serve it with --model"),
    "whole model": (
        "a.pth",
        saving(lambda state: build(3)),
        r"hold Python objects.*torch.nn.modules.* and 6 more.*alone:",
    ),
    "code": (
        "a.pth",
        saving(lambda state: {"state_dict": state, "x": Code()}),
        r"Python objects.*: builtins.print\. They.*run code",
    ),
    "numpy": (
        "a.pth",
        saving(lambda state: {"state_dict": state, "acc": np.float64(1)}),
        r"numpy\._core\.multiarray\.scalar",
    ),
    "list": ("a.pth", saving(lambda state: [1]), r"are of type list, not a state dict; save the weights where"),
    "optimizer": (
        "a.pth",
        saving(lambda state: {"optimizer": {"state": {}}}),
        r"no state dict, only 'optimizer' \(dict\)",
    ),
    "text": ("a.pth", lambda state, path: path.write_text("hello"), "is neither of torch.save nor safetensors; save"),
    "pickle": (
        "a.pth",
        lambda state, path: path.write_bytes(pickle.dumps({"a": 1})),
        "is neither of torch.save nor safetensors; save",
    ),
    "code in a pickle": (
        "a.pth",
        lambda state, path: path.write_bytes(b"cbuiltins\nprint\n(S'this must not run'\ntR."),
        "is neither of torch.save nor safetensors; save",
    ),
    "folder": ("a.pth", lambda state, path: path.mkdir(), "a.pth: is a directory; --weights takes a .pth, .pt"),
    "pipe": ("a.pth", lambda state, path: os.mkfifo(path), "a.pth: not a regular file; --weights takes a .pth, .pt"),
    "link to itself": ("a.pth", lambda state, path: path.symlink_to(path), "a.pth: too many levels of symbolic links"),
    "dictionary within itself": ("a.pth", saving(within_itself), r"no state dict, only 'model' \(dict\)"),
    "numbered keys": ("a.pth", saving(lambda state: dict(enumerate(state.values()))), "not text: 0, 1, .* more; save"),
    "long key": ("a.pth", saving(lambda state: {"a" * 10**5: 1}), r"only 'aaa.*99808 more.* \(int\); save"),
    "sparse": ("a.pth", saving(with_head(Tensor.to_sparse)), "quantized, sparse .*: classifier.weight; save"),
    "quantized": ("a.pth", quantized, "quantized, sparse .*: classifier.weight; save"),
    "without values": ("a.pth", saving(with_head(lambda weight: weight.to("meta"))), "or without values: classifier"),
    "no classes": ("a.pth", saving(with_head(lambda weight: weight[:0])), "have 0 classes in classifier; 1 to 100000"),
    "10¹² classes": (
        "a.pth",
        saving(with_head(lambda weight: weight[:1, :1].expand(10**12, 52))),
        "have 1000000000000 classes in classifier; 1 to 100000 can be exported",
    ),
    "too large for FP32": (
        "a.pth",
        saving(with_head(lambda weight: weight.double() * 1e300)),
        "not finite, as after a training that diverged: classifier.weight",
    ),
    "negative variance": (
        "a.pth",
        saving(lambda state: state | {"features.norm0.running_var": -torch.ones(16)}),
        "PyTorch's own logits are not finite; choose an earlier checkpoint",
    ),
    "nothing": ("a.pth", saving(lambda state: {}), "are an empty state dict"),
    "no head": ("a.pth", saving(headless), "have no classifier: .* save the state dict of the whole network"),
    "another head": (
        "a.pth",
        saving(lambda state: headless(state) | {"fc.weight": torch.ones(3, 52)}),
        r"have no classifier: .*other layers are fc",
    ),
    "hidden layer": (
        "a.pth",
        saving(
            lambda state: (
                headless(state) | {"classifier.0.weight": torch.ones(8, 52), "classifier.3.weight": torch.ones(3, 8)}
            )
        ),
        r"classifier of several layers, classifier\.0, classifier\.3.*one Linear can be exported",
    ),
    "two networks": (
        "a.pth",
        saving(lambda state: prefixed("student.", state) | prefixed("teacher.", state)),
        r"hold 2 networks, in 'student\.', 'teacher\.'; save the state dict of one",
    ),
    "two heads": (
        "a.pth",
        saving(lambda state: prefixed("backbone.", state) | {"classifier.weight": torch.ones(2, 3)}),
        r"two values for classifier\.weight",
    ),
    "integers": (
        "a.pth",
        saving(lambda state: state | {"features.conv0.weight": state["features.conv0.weight"].to(torch.int8)}),
        r"not floating-point: features\.conv0\.weight is torch\.int8",
    ),
    "NaN": (
        "a.pth",
        saving(lambda state: state | {"classifier.weight": state["classifier.weight"] * torch.nan}),
        r"not finite, .*: classifier\.weight\. Needed are floating-point weights of small_densenet, unchanged but",
    ),
    "one class": (
        "a.pth",
        saving(lambda state: state | {"classifier.weight": torch.ones(1, 52), "classifier.bias": torch.ones(1)}),
        "one class, whose softmax is always 1; add --activation sigmoid",
    ),
}


def test_one_class_has_no_photographs_to_fit_a_temperature_to(
    small_densenet: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", small_densenet.architecture)
    torch.save(build(1).state_dict(), tmp_path / "a.pth")
    flags = ["--activation", "sigmoid", "--fit-temperature", "--output", str(tmp_path / "a.onnx")]
    assert main(["--model", "small", "--weights", str(tmp_path / "a.pth"), *flags]) == 1
    assert "--fit-temperature needs photographs of two classes, and the network has one" in capsys.readouterr().err


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_file_gets_one_line_that_says_what_to_do(
    broken: str,
    state: State,
    small_densenet: Network,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", small_densenet.architecture)
    file, write, words = BROKEN[broken]
    write(state, tmp_path / file)
    output = tmp_path / "models" / "mine.onnx"
    assert main(["--model", "small", "--weights", str(tmp_path / file), "--output", str(output)]) == 1
    said = capsys.readouterr()
    first, *code = said.err.splitlines()
    assert re.search(rf"^export: .*{words}", first)
    assert len(first) < 600
    assert "this must not run" not in said.out
    assert all(line.startswith("    ") for line in code)
    assert list(output.parent.iterdir()) == []


def test_the_three_lines_of_the_message_save_a_state_dict(
    trained: nn.Module, small_densenet: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extra = {"best": np.float64(1)}
    for content in (
        trained,
        {"epoch": 3, "model": trained},
        {"state_dict": trained.state_dict(), **extra},
        {"args": extra, "model_state_dict": trained.state_dict()},
        {"optimizer": {"state": {}}, "model": trained.state_dict(), "loss": nn.CrossEntropyLoss()},
    ):
        torch.save(content, "it's mine.pth")
        with pytest.raises(WeightsError) as refusal:
            read_weights(Path("it's mine.pth"))
        assert len(refusal.value.code) == 3
        subprocess.run([sys.executable, "-c", "\n".join(refusal.value.code)], check=True, env={"PYTHONPATH": str(ROOT)})
        assert_read(Path("it's mine-state.pth"), trained, small_densenet)


def test_another_networks_weights_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "resnet.pth")
    assert main(["--weights", str(tmp_path / "resnet.pth")]) == 1
    assert re.fullmatch(
        r"export: weights resnet\.pth have keys such as conv1\.weight, which is none of densenet121, densenet161, "
        r"densenet169, densenet201; if it is another network that can be exported, name it with --model\n",
        capsys.readouterr().err,
    )
