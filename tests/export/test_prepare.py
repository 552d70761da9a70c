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
from export.prepare import WEIGHTS_URL, cached_weights, decide, reachable
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


def put_model(models: Path, weights: Path | None = None) -> None:
    (models / "densenet121.onnx").touch()
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None
    row = {"sha256": hashlib.sha256(b"").hexdigest()}  # of the empty file
    (models / "densenet121.json").write_text(json.dumps({"weights_sha256": sha256, "table": [row]}))


def test_the_address_is_torchvisions() -> None:
    assert DenseNet121_Weights.IMAGENET1K_V1.url == WEIGHTS_URL


def test_an_exported_model_is_served(models: Path) -> None:
    put_model(models)
    assert decide("auto", None, models, NOWHERE) == ("serve", "")
    assert decide("densenet121", None, models, NOWHERE) == ("serve", "")


def test_given_weights_are_exported_unless_the_model_is_theirs(models: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"some")
    assert decide("auto", weights, models, NOWHERE)[0] == "export"
    put_model(models, weights)
    assert decide("auto", weights, models, NOWHERE) == ("serve", "")
    weights.write_bytes(b"others")
    assert decide("auto", weights, models, NOWHERE)[0] == "export"
    put_model(models, weights)
    (models / "densenet121.onnx").write_bytes(b"a model that the report is not of")
    assert decide("auto", weights, models, NOWHERE)[0] == "export"
    (models / "densenet121.json").write_text("rubbish")
    assert decide("auto", weights, models, NOWHERE)[0] == "export"


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
    decision, reason = decide("auto", None, models, NOWHERE)
    assert decision == "serve"
    for words in (NOWHERE, "cannot be reached", "EfficientNet-Lite0", "make serve WEIGHTS=PATH"):
        assert words in reason


def test_requiring_densenet_fails_with_what_was_tried(models: Path, empty_cache: Path) -> None:
    decision, reason = decide("densenet121", None, models, NOWHERE)
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
    assert decide("efficientnet_lite0", None, models, NOWHERE) == ("serve", "")
    assert decide("my.onnx", None, models, NOWHERE) == ("serve", "")


def test_a_host_that_does_not_answer_is_given_up_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        assert not reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/weights.pth", seconds=0.5)
        assert time.monotonic() - started < 2
    assert prepare.GIVE_UP_SECONDS <= 10
