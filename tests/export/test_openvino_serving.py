"""The server on OpenVINO itself, with a small network; needs its plug-in and a CPU with VNNI."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from starlette.testclient import TestClient

from export.int8.pipeline import make_int8
from export.int8.qdq import to_qdq
from serve.api.app import create_app
from serve.config.cpus import cpu_features
from serve.config.settings import Config
from serve.model import openvino_plugin
from serve.model.classifier import load_classifier
from serve.model.engine_choice import choose_engine
from serve.model.engines import EngineOptions
from serve.model.session import load_model
from tests import small_densenet as small
from tests.export.conftest import Network
from tests.export.test_quantize import calibrated

RUNS = not openvino_plugin.obstacle() and bool({"avx512_vnni", "avx_vnni"} & cpu_features())


@pytest.fixture(scope="module")
def folder(small_densenet: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two int8 files of a small network, with what the server needs to know of it."""
    made = tmp_path_factory.mktemp("models")
    int8 = make_int8(small_densenet.model, small_densenet.architecture, calibrated(small_densenet))
    card = {**small.SPEC.to_card(), "name": "small", "variant": "int8", "class_count": small.CLASSES}
    card["labels"] = [f"class {number}" for number in range(small.CLASSES)]
    for model, suffix, engine in ((int8, "int8", {}), (to_qdq(int8), "qdq", {"engine": "openvino"})):
        helper.set_model_props(model, {key: json.dumps(value) for key, value in {**card, **engine}.items()})
        onnx.save(model, made / f"small.{suffix}.onnx")
    return made


def pictures(count: int) -> list[bytes]:
    encoded = []
    for image in small.draw(count, seed=3):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded


def test_the_cpu_engine_runs_openvinos_file_where_it_is_the_only_one(folder: Path) -> None:
    images = small.images(4, seed=3)
    pixels = np.rint((images.transpose(0, 2, 3, 1) * small.SPEC.std + small.SPEC.mean) * 255).astype(np.uint8)
    ours, theirs = (load_model(folder / f"small.{suffix}.onnx", EngineOptions()) for suffix in ("int8", "qdq"))
    wanted = ours.logits(pixels)
    assert np.abs(theirs.logits(pixels) - wanted).mean() <= 0.04 * wanted.std()


if RUNS:

    def test_auto_takes_openvino_only_on_a_cpu_with_amx(folder: Path) -> None:
        choice = choose_engine("auto", "small", "auto", [folder])
        has_amx = "amx_int8" in cpu_features()
        assert (choice.engine, choice.path.name) == (
            ("openvino", "small.qdq.onnx") if has_amx else ("cpu", "small.int8.onnx")
        )

    @pytest.mark.parametrize("settings", [{}, {"streams": 1, "intra_op_threads": 1}, {"max_batch": 3}])
    def test_each_image_is_answered_as_by_the_cpu_engine(folder: Path, settings: dict[str, Any]) -> None:
        config = Config(models=folder, model="small", streams=2, intra_op_threads=2, allowed_hosts=("*",))
        files = [("file", (f"{number}.png", data)) for number, data in enumerate([*pictures(7), b"\x89PNG\r\n\x1a\n"])]
        answers = {}
        for engine in ("cpu", "openvino"):
            changed = replace(config, engine=engine, **settings)
            classifier = load_classifier(changed)
            with TestClient(create_app(changed, classifier)) as client:
                card = client.get("/model").json()
                assert (card["engine"], card["engine_reason"]) == (engine, f"engine={engine} is set")
                alone = client.post("/upload", files=files[:1]).json()
                answers[engine] = client.post("/upload?top_k=10", files=files).json()["results"]
            classifier.close()
            assert alone["label"] == answers[engine][0]["label"]
        assert [answer.get("status") for answer in answers["openvino"]] == [None] * 7 + [422]
        for ours, theirs in zip(answers["openvino"][:7], answers["cpu"][:7], strict=True):
            ours, theirs = ({each["label"]: each["probability"] for each in top["top_k"]} for top in (ours, theirs))
            assert ours == pytest.approx(theirs, abs=0.05)

    def test_a_compiled_model_is_kept_where_the_setting_says_and_a_damaged_one_made_again(
        folder: Path, tmp_path: Path
    ) -> None:
        cache = tmp_path / "cache"
        options = EngineOptions.from_config(Config(engine_cache=cache, streams=2, intra_op_threads=2), "openvino")
        image = np.full((1, small.SIDE, small.SIDE, 3), 77, np.uint8)
        answers = []
        for damage in (None, None, b"", b"not a compiled model"):
            for path in cache.glob("*") if damage is not None else ():
                path.chmod(0o600)
                path.write_bytes(damage or b"")
            answers.append(load_model(folder / "small.qdq.onnx", options, "openvino").logits(image))
            assert all(path.stat().st_size > 10_000 for path in cache.iterdir())
        assert list(cache.iterdir())
        for answer in answers:
            np.testing.assert_array_equal(answer, answers[0])
