"""`make serve` serves an existing model, else exports one if it finds weights, else falls back and says so."""

import hashlib
import json
import socket
import threading
import time
from pathlib import Path

import pytest
from torchvision.models import DenseNet121_Weights

from export import prepare
from export.known_weights import KNOWN_WEIGHTS, WEIGHTS_URL, KnownWeights, digest_of_labels, model_name
from export.prepare import cached_weights, decide, reachable
from tests.local_host import serving

NOWHERE = "http://127.0.0.1:9/densenet121-a639ec97.pth"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def put_model(models: Path, weights: Path | None = None, name: str = "densenet121", labels: str | None = None) -> None:
    (models / f"{name}.onnx").touch()
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None
    row = {"sha256": hashlib.sha256(b"").hexdigest()}  # of the empty file
    report = {"weights_sha256": sha256, "table": [row], **({"labels_sha256": labels} if labels else {})}
    (models / f"{name}.json").write_text(json.dumps(report))


def test_the_address_is_torchvisions() -> None:
    assert DenseNet121_Weights.IMAGENET1K_V1.url == WEIGHTS_URL


def test_an_exported_model_is_served(models: Path) -> None:
    put_model(models)
    assert decide("auto", None, models, NOWHERE) == ("serve", "", "")
    assert decide("densenet121", None, models, NOWHERE) == ("serve", "", "")


def test_given_weights_are_exported_unless_the_model_is_theirs(models: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.pth"
    weights.write_bytes(b"some")
    assert decide("auto", weights, models, NOWHERE) == ("export", "mine", f"Exporting mine from {weights}")
    put_model(models, weights, "mine")
    for model in ("auto", "densenet121"):
        assert decide(model, weights, models, NOWHERE) == ("serve", "mine", "")
    weights.write_bytes(b"others")
    assert decide("auto", weights, models, NOWHERE)[:2] == ("export", "mine")
    put_model(models, weights, "mine")
    (models / "mine.onnx").write_bytes(b"a model that the report is not of")
    assert decide("auto", weights, models, NOWHERE)[0] == "export"
    (models / "mine.json").write_text("rubbish")
    assert decide("auto", weights, models, NOWHERE)[0] == "export"


def test_a_model_with_other_labels_is_exported_again(models: Path, tmp_path: Path) -> None:
    weights, labels = tmp_path / "mine.pth", tmp_path / "labels.txt"
    weights.write_bytes(b"some")
    labels.write_text("cat\ndog\n")
    put_model(models, weights, "mine", digest_of_labels(labels))
    assert decide("auto", weights, models, NOWHERE, digest_of_labels(labels)) == ("serve", "mine", "")
    assert decide("auto", weights, models, NOWHERE) == ("serve", "mine", "")  # with the labels that it has
    labels.write_text("cat\nbird\n")
    assert decide("auto", weights, models, NOWHERE, digest_of_labels(labels))[0] == "export"
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    before = digest_of_labels(tmp_path / "photos")
    (tmp_path / "photos" / "dog").mkdir()
    assert digest_of_labels(tmp_path / "photos") != before


def test_published_weights_are_densenet121_and_the_server_chooses_by_its_settings(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "any-name.pth"
    weights.write_bytes(b"some")
    published = KnownWeights("densenet121", "somewhere", "some licence")
    monkeypatch.setitem(KNOWN_WEIGHTS, hashlib.sha256(b"some").hexdigest(), published)
    assert decide("auto", weights, models, NOWHERE) == ("export", "", f"Exporting DenseNet-121 from {weights}")
    put_model(models, weights)
    assert decide("auto", weights, models, NOWHERE) == ("serve", "", "")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("mine.pth", "mine"),
        ("mine.v2.safetensors", "mine.v2"),
        ("epoch=3-step=100.ckpt", "epoch=3-step=100"),
        ("densenet121.pth", "densenet121-own"),
        ("DenseNet161.pt", "DenseNet161-own"),
        ("efficientnet_lite0.pth", "efficientnet_lite0-own"),
        ("mine.int8.pth", "mine"),
        ("model_best.pth.tar", "model_best"),
        ("mine.qdq.onnx.pth", "mine"),
        (f"{'a' * 300}.pth", "a" * 100),
    ],
)
def test_a_model_is_called_as_its_weights_but_never_as_a_published_one(file: str, name: str) -> None:
    assert model_name(Path("some/folder") / file, "0" * 64) == name


def test_torchvisions_own_file_is_recognised_by_its_sha256() -> None:
    assert model_name(Path("a.pth"), f"a639ec97{'0' * 56}") == "densenet121"


def test_cached_weights_are_exported(models: Path, empty_cache: Path) -> None:
    empty_cache.mkdir(parents=True)
    (empty_cache / "densenet121-a639ec97.pth").touch()
    assert cached_weights(NOWHERE) == empty_cache / "densenet121-a639ec97.pth"
    assert decide("auto", None, models, NOWHERE)[0] == "export"


def test_weights_that_can_be_downloaded_are_exported(models: Path, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "weights.pth").touch()
    with serving(tmp_path / "host") as url:
        assert decide("auto", None, models, f"{url}/weights.pth")[0] == "export"
        assert decide("auto", None, models, f"{url}/none.pth")[0] == "serve"


def test_without_weights_and_network_the_embedded_model_is_served_with_the_reason(models: Path) -> None:
    decision, _, reason = decide("auto", None, models, NOWHERE)
    assert decision == "serve"
    for words in (NOWHERE, "cannot be reached", "EfficientNet-Lite0", "make serve WEIGHTS=PATH"):
        assert words in reason


def test_requiring_densenet_fails_with_what_was_tried(models: Path, empty_cache: Path) -> None:
    decision, _, reason = decide("densenet121", None, models, NOWHERE)
    assert decision == "fail"
    for words in (str(empty_cache), NOWHERE, "cannot be reached", "make serve WEIGHTS=PATH"):
        assert words in reason


def test_a_host_that_answers_rubbish_is_not_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"rubbish\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        assert not reachable(f"http://127.0.0.1:{listener.getsockname()[1]}/weights.pth", seconds=5)


def test_other_models_need_no_preparation(models: Path) -> None:
    assert decide("efficientnet_lite0", None, models, NOWHERE) == ("serve", "", "")
    assert decide("my.onnx", None, models, NOWHERE) == ("serve", "", "")


def test_a_host_that_does_not_answer_is_given_up_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert not reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pth", seconds=0.5)
        assert time.monotonic() - started < 2
    assert prepare.GIVE_UP_SECONDS <= 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "none.pth"], "WEIGHTS=none.pth: no such file or directory; a state dict"),
        (["--weights", "/dev/zero"], "WEIGHTS=/dev/zero: not a regular file; a state dict"),
        (["--weights", __file__, "--labels", "none.txt"], "LABELS=none.txt: no such file or directory; a file or a"),
        (["--weights", __file__, "--labels", "/dev/zero"], "LABELS=/dev/zero: not a regular file; a file or a folder"),
        (
            ["--weights", __file__, "--labels", "a" * 300],
            "aaa: file name too long; a file or a folder of class folders",
        ),
        (["--labels", "labels.txt"], "LABELS=labels.txt: name the weights that they belong to, WEIGHTS=PATH"),
    ],
)
def test_paths_that_cannot_be_used_are_named_at_once(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["prepare.py", *arguments])
    assert prepare.main() == 2
    said = capsys.readouterr()
    assert words in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
