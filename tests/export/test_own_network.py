"""A network of one's own is exported with its labels, and served with PyTorch's accuracy."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torchvision.datasets.folder import find_classes

from benchmarks.harness.servers import free_port
from examples import fine_tune
from export import export_onnx
from export.architectures import ARCHITECTURES
from export.class_labels import numbers_of, read_labels
from export.evaluate import label_of, logits_of
from export.export_onnx import main
from export.files import ROOT
from export.int8.calibration import Calibration
from export.int8.pipeline import calibrate, make_int8
from export.known_weights import digest_of_labels
from export.options import parse
from export.temperature import MIN_LABELLED, Temperature, calibration_error, fit
from serve.model import openvino_plugin
from serve.model.labels import Label
from serve.model.postprocess import COLDEST, HOTTEST, Activation
from tests import small_densenet as small
from tests.documents import commands_in
from tests.export.conftest import REAL, Network, untrained
from tests.make_process import fresh_tree, make, wait_until_ready

LABELS = [f"kind {number}" for number in range(small.CLASSES)]
Export = Callable[..., int]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 photographs in class folders; those of all classes have the same names."""
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(small.draw(120, 31)):
        place = folder / LABELS[number % small.CLASSES]
        place.mkdir(exist_ok=True)
        image.save(place / f"{number // small.CLASSES}.png")
    return folder


@pytest.fixture
def export(small_densenet: Network, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Runs the command on the small network in a checkpoint; writes to `models` and returns the status."""
    monkeypatch.setitem(ARCHITECTURES, "small", small_densenet.architecture)
    monkeypatch.setattr(export_onnx, "export_graph", lambda network, side, opset: onnx.load(small.PATH))
    monkeypatch.setattr(export_onnx, "default_output", lambda name: tmp_path / "models" / f"{name}.onnx")
    monkeypatch.setattr("export.parity.LOGIT_TOLERANCE", 1e-3)  # on noise its logits are in the hundreds
    monkeypatch.setattr("export.report.measure_latency", lambda contents, side, threads: dict.fromkeys(contents, 1.0))
    torch.save({"model": small.network().state_dict()}, tmp_path / "mine.pth")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))

    def run(*arguments: Any) -> int:
        given = ["--model", "small", "--weights", tmp_path / "mine.pth", *arguments]
        return main([str(argument) for argument in given])

    return run


def card_of(path: Path) -> dict[str, Any]:
    return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}


def test_a_network_of_ones_own_gets_int8_calibrated_on_a_part_and_compared_on_the_rest(
    export: Export, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("--labels", tmp_path / "labels.txt", "--photos", photos, "--fit-temperature") == 0
    models = ["mine.onnx", "mine.int8.onnx", *(["mine.qdq.onnx"] if not openvino_plugin.obstacle() else [])]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted([*models, "mine.json"])
    assert "120 photographs, 120 labelled" in capsys.readouterr().out
    for name in models:
        card = card_of(tmp_path / "models" / name)
        assert (card["name"], card["architecture"], card["labels"]) == ("mine", "small_densenet", LABELS)
        assert "ids" not in card
        assert "activation" not in card
        assert card["accuracy"]["photographs"] == 60
        error = card["expected_calibration_error"]
        assert error["after"] <= error["before"]
        assert error["photographs"] >= 25
    assert card["calibration"] == {"source": photos.name, "photographs": 60}
    assert 0.1 <= card["temperature"] <= 10
    report = json.loads((tmp_path / "models" / "mine.json").read_text())
    assert report["labels_sha256"] == digest_of_labels(tmp_path / "labels.txt")


def test_without_photographs_fp32_is_written_alone_and_the_reason_said(
    export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("--name", "My network", "--activation", "sigmoid", "--temperature", "1.5") == 0
    card = card_of(tmp_path / "models" / "mine.onnx")
    assert (card["name"], card["activation"], card["temperature"]) == ("My network", "sigmoid", 1.5)
    assert "labels" not in card
    said = capsys.readouterr()
    assert re.search(
        r"^export: no int8 model, fp32 is served: int8 needs photographs .* there are none", said.err, re.MULTILINE
    )
    assert "export: the model has 10 classes and no labels; name them with --labels" in said.err
    assert "failed" not in said.out
    assert not (tmp_path / "models" / "mine.int8.onnx").exists()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_only_a_softmax_passes_the_gate_by_its_likeliest_class(
    activation: str,
    export: Export,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bounds = {"MIN_PHOTOGRAPHS": 10, "MIN_AGREEMENT": 0, "MAX_TOP1_LOSS": 1, "MAX_MEAN_DIFFERENCE": 0}
    for name, bound in bounds.items():
        monkeypatch.setattr(f"export.int8.gate.{name}", bound)
    assert export("--labels", photos, "--photos", photos, "--activation", activation) == 0
    assert (tmp_path / "models" / "mine.int8.onnx").exists() == (activation == "softmax")
    refused = "export: no int8 model, fp32 is served: int8 differs from fp32: mean |Δ logit| is"
    assert (refused in capsys.readouterr().err) == (activation == "sigmoid")


def test_preprocessing_of_ones_own_is_in_the_file(
    export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--resize", 80, "--interpolation", "bicubic", "--mean", 0.5, 0.5, 0.5, "--std", 0.003921569, 0.25, 1]
    assert export(*flags) == 0
    card = card_of(tmp_path / "models" / "mine.onnx")
    assert (card["resize"], card["crop"], card["interpolation"]) == (80, small.SIDE, "bicubic")
    assert (card["mean"], card["std"]) == ([0.5] * 3, [0.003921569, 0.25, 1.0])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--mean", "123.7", "116.8", "103.9"],
            "123.7 is not between 0 and 1; divide means of values up to 255 by 255",
        ),
        (["--mean", "a", "0.5", "0.5"], "a is not between 0 and 1"),
        (["--std", "0", "1", "1"], "std=[0.0, 1.0, 1.0], not three numbers from 0.0001 to 10000"),
        (["--std", "nan", "1", "1"], "std=[nan, 1.0, 1.0], not three numbers from 0.0001 to 10000"),
        (["--crop", "300"], "resize=256 and crop=300, not pixels with crop ≤ resize"),
        (["--crop", "16"], "16 is not a whole number from 32 to 4096"),
        (["--crop", "64.5"], "64.5 is not a whole number from 32 to 4096"),
        (["--temperature", "-1"], "-1 is not a number from 0.001 to 1000"),
        (["--temperature", "0.0009"], "0.0009 is not a number from 0.001 to 1000"),
        (["--temperature", "1001"], "1001 is not a number from 0.001 to 1000"),
        (["--temperature", "nan"], "nan is not a number from 0.001 to 1000"),
        (["--temperature", "warm"], "warm is not a number from 0.001 to 1000"),
        (["--output", "models/mine"], "'models/mine' does not end in .onnx"),
        (["--output", "models/mine.json"], "'models/mine.json' does not end in .onnx"),
        (["--temperature", "2", "--fit-temperature"], "not allowed with argument"),
        (["--name", "a/b"], "'a/b' is not 1 to 100 printable characters without a slash"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("\n".join(LABELS[:8]), "8 labels for a model of 10 classes: none for class 8, 9"),
        ("\n".join([*LABELS, "another"]), "11 labels for a model of 10 classes: 'another' are too many"),
        ("\n".join([*LABELS[:9], LABELS[2]]), "classes 2 and 9 have the same label, 'kind 2'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    content: str, words: str, export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_text(content)
    assert export("--labels", tmp_path / "labels.txt") == 1
    assert f"export: labels {tmp_path / 'labels.txt'}: {words}; --labels takes .txt" in capsys.readouterr().err
    assert export("--labels", tmp_path / "none.txt") == 1
    assert "none.txt: No such file" in capsys.readouterr().err


def test_a_file_whose_name_no_model_can_have_needs_another(
    export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.pth").rename(tmp_path / "my\nnet.pth")
    assert export("--weights", tmp_path / "my\nnet.pth") == 1
    assert capsys.readouterr().err == (
        r"export: the model cannot be called 'my\nnet', as its file is; name it with --name, 1 to 100 printable "
        "characters without a slash\n"
    )
    assert export("--weights", tmp_path / "my\nnet.pth", "--name", "my net") == 0
    assert card_of(tmp_path / "models" / "my\nnet.onnx")["name"] == "my net"


def test_class_folders_and_class_to_idx_are_labels(export: Export, photos: Path, tmp_path: Path) -> None:
    assert export("--labels", photos) == 0
    assert card_of(tmp_path / "models" / "mine.onnx")["labels"] == LABELS
    content = torch.load(tmp_path / "mine.pth")
    numbers = {label: (position + 1) % small.CLASSES for position, label in enumerate(LABELS)}
    torch.save(content | {"class_to_idx": numbers}, tmp_path / "mine.pth")
    assert export() == 0
    assert card_of(tmp_path / "models" / "mine.onnx")["labels"] == [LABELS[-1], *LABELS[:-1]]


def test_class_folders_are_numbered_as_torchvision_does(tmp_path: Path) -> None:
    for name in ("b", "B", "10", "9", "é", ".hidden", "a b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a file.txt").touch()
    names, numbers = find_classes(tmp_path)
    labels = read_labels(tmp_path, len(names))
    assert [label.name for label in labels] == names
    assert numbers_of(labels, len(names)) == numbers


def test_labels_with_ids_are_stored_with_them(export: Export, tmp_path: Path) -> None:
    content = {number: [f"n{number}", label] for number, label in enumerate(LABELS)}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    assert export("--labels", tmp_path / "labels.json") == 0
    card = card_of(tmp_path / "models" / "mine.onnx")
    assert (card["labels"], card["ids"]) == (LABELS, [f"n{number}" for number in range(small.CLASSES)])


@pytest.mark.parametrize(
    ("path", "number"),
    [
        *(("cat/1.jpg", 0), ("photos/cat_1.jpg", 0), ("photos/cat.1.jpg", 0), ("cat/black cat_1.jpg", 0)),
        *(("black cat/1.jpg", 1), ("photos/black cat-1.jpg", 1), ("photos/black cat 1.jpg", 1)),
        *(("n01530575/1.jpg", 2), ("photos/n01530575_1.jpg", 2), ("photos/n01530575.jpg", 2)),
        *(("crane/1.jpg", None), ("n02012849/1.jpg", 3), ("photos/catalogue_1.jpg", None), ("photos/1.jpg", None)),
    ],
)
def test_a_photographs_class_is_its_folders_or_in_front_of_its_name(path: str, number: int | None) -> None:
    names = [(None, "cat"), (None, "black cat"), ("n01530575", "finch"), ("n02012849", "crane"), ("n03126707", "crane")]
    assert label_of(Path(path), numbers_of(tuple(Label(*each) for each in names), 5)) == number


def test_too_few_labelled_photographs_fit_no_temperature(
    export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("--fit-temperature", "--labels", tmp_path / "labels.txt") == 1
    said = capsys.readouterr()
    assert "--fit-temperature needs at least 50 photographs whose class is known, not 0" in said.err
    assert "parity" not in said.out  # before minutes of work


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_fitted_temperature_undoes_logits_that_are_too_large_or_too_small(activation: str, factor: float) -> None:
    random = np.random.default_rng(2)
    logits = random.normal(0, 2, (4000, 5))
    if activation == "softmax":
        noise = random.gumbel(size=logits.shape)  # the class that is drawn has softmax's probability
        truth = (logits + noise).argmax(1)
    else:
        truth = random.integers(0, 5, 4000)
        logits = random.normal(0, 1.5, (4000, 5)) + np.where(np.arange(5) == truth[:, None], 2, -2)
    labels = [int(label) for label in truth]
    wanted = fit(logits, labels, activation).value
    scaled = fit(logits * factor, labels, activation)
    assert scaled.value is not None and wanted is not None
    assert scaled.value == pytest.approx(wanted * factor, rel=0.02)
    if activation == "softmax":
        assert wanted == pytest.approx(1, abs=0.1)
    card = scaled.to_card(activation, logits * factor, labels, range(4000))
    assert card["expected_calibration_error"]["photographs"] == 2000
    if factor == 3.0 and activation == "softmax":
        assert card["expected_calibration_error"]["after"] < card["expected_calibration_error"]["before"]


@pytest.mark.parametrize("logits", [[1e6, 0.0], [1e-6, 0.0]])
def test_every_temperature_of_the_export_is_one_that_the_server_takes(logits: list[float]) -> None:
    for right in (0, 1):
        card = fit(np.array([logits] * MIN_LABELLED), [right] * MIN_LABELLED, "softmax").to_card(
            "softmax", np.array([logits]), [right], [0]
        )
        assert Activation.from_card(card).temperature == card["temperature"]
    for text in (str(COLDEST), str(HOTTEST)):
        given = {"temperature": parse(["--temperature", text]).temperature}
        assert Activation.from_card(given).temperature == float(text)


def test_without_a_temperature_a_card_has_the_error_before_alone() -> None:
    logits = np.random.default_rng(5).normal(0, 2, (25, 3))
    card = Temperature(None).to_card("softmax", logits, [0] * 25, range(25))
    assert card.keys() == {"expected_calibration_error"}
    assert card["expected_calibration_error"].keys() == {"photographs", "before"}
    assert Temperature(None).to_card("softmax", logits, [None, *[0] * 24], range(25)) == {}
    assert Temperature(None).to_card("sigmoid", logits[:, :1], [0] * 25, range(25)) == {}


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    sure = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.2, 0.8]]))
    assert calibration_error(sure, np.array([0, 1, 1, 1]), "softmax") == pytest.approx((0.4 * 2 + 0.2 * 2) / 4)
    assert calibration_error(np.array([[0.0, 0.0]]), np.array([0]), "sigmoid") == pytest.approx(0)
    assert MIN_LABELLED >= 50


def test_the_widest_densenet_is_quantized_by_the_same_passes() -> None:
    """On small images, with random weights; the rewritten graph must give the fp32 graph's logits."""
    whole = ARCHITECTURES["densenet161"]
    network = untrained(replace(whole, preprocessing=replace(whole.preprocessing, resize=64, crop=64)), images=4)
    calibration = Calibration("patterns", dict.fromkeys("abcd", ""), None)
    calibrate(network.model, network.calibration_batches, calibration, lambda done, total: None)
    images = list(small.batches(network.calibration_images))
    int8 = make_int8(network.model, network.architecture, calibration, images)
    convs = sum(node.op_type == "Conv" for node in network.model.graph.node)
    assert sum(node.op_type == "QLinearConv" for node in int8.graph.node) == convs
    spec = network.architecture.preprocessing
    fp32_logits, int8_logits = (
        logits_of(model.SerializeToString(), images, spec, lambda done, total: None, 4)
        for model in (network.model, int8)
    )
    assert np.abs(int8_logits - fp32_logits).mean() < 0.1 * fp32_logits.std()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--weights", "none.pth", "--photos", "photos"],
            "fine_tune: weights none.pth: no such file or directory; --w",
        ),
        (
            ["--weights", "other.pth", "--photos", "photos"],
            "fine_tune: weights other.pth do not fit densenet121: missing",
        ),
        (["--weights", "other.pth", "--photos", "none"], "fine_tune: [Errno 2] No such file or directory: 'none'"),
        (["--check", "http://127.0.0.1:9"], "fine_tune: [Errno 2] No such file or directory: 'held_out.json'"),
    ],
)
def test_the_example_says_in_a_line_what_it_lacks(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(20):
        (tmp_path / "photos" / f"n01440764_{number}.JPEG").touch()
    torch.save(small.network().state_dict(), "other.pth")
    monkeypatch.setattr("sys.argv", ["fine_tune.py", *arguments, "--output", "."])
    assert fine_tune.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(words)


def test_the_example_says_that_no_server_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "held_out.json").write_text(json.dumps({"a.png": {"label": "dog", "pytorch": "dog"}}))
    (tmp_path / "a.png").touch()
    monkeypatch.setattr("sys.argv", ["fine_tune.py", "--output", str(tmp_path), "--check", "http://127.0.0.1:9"])
    assert fine_tune.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"fine_tune: http://127\.0\.0\.1:9: .*refused.*; does the server .* run there\?", line)


if REAL:
    PHOTOGRAPHS = 160  # half of them are held out: 40 to calibrate on, 40 to compare on

    def test_the_five_commands_of_the_readme_serve_pytorchs_accuracy(
        weights: Path, photo_folder: Path, tmp_path: Path
    ) -> None:
        tree = fresh_tree(tmp_path / "clone")
        (tree / "densenet121.pth").symlink_to(weights)
        (tree / "photos").mkdir()
        every = sorted(photo_folder.iterdir())
        for path in every[:: max(1, len(every) // PHOTOGRAPHS)]:
            (tree / "photos" / path.name).symlink_to(path)
        mark = "tests/export/test_own_network.py"
        commands = [command.text for command in commands_in(ROOT / "README.md") if command.note == mark]
        assert len(commands) == 5
        port = free_port()
        said = ""
        for command in commands[:2]:
            said += run(command, tree, port)
        assert re.search(r"^compare int8 with fp32 +[0-9.]+ s  \d+ held-out photographs", said, re.MULTILINE)
        assert (tree / "models" / "own.int8.onnx").is_file()
        card = card_of(tree / "models" / "own.onnx")
        assert card["temperature"] != 1
        assert card["expected_calibration_error"].keys() == {"photographs", "before", "after"}
        assert commands[2].startswith("make ")
        server = make(tree, *commands[2].split()[1:], f"PORT={port}")
        try:
            wait_until_ready(server, f"http://127.0.0.1:{port}", 60)
            answer = json.loads(run(commands[3], tree, port))
            assert (answer["model"], answer["label"]) == ("own", "other")
            assert "imagenet_id" not in answer
            assert re.search(r"the server is right on \d+ of \d+ held out", run(commands[4], tree, port))
        finally:
            os.killpg(server.pid, 15)
            output, _ = server.communicate(timeout=60)
        assert "parity" not in output  # the export of the second command is served

    def run(command: str, tree: Path, port: int) -> str:
        """Runs a command, which fails if the server is not right as often as PyTorch, within a photograph."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        text = command.replace(":5000", f":{port}")
        done = subprocess.run(
            ["bash", "-ec", text],
            cwd=tree,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
