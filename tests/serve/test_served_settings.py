"""Tests that settings reach the classifier: decoding, orientation and limits."""

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from serve.config.settings import Config
from serve.imaging.decoders import Crop
from serve.model import classifier as module
from serve.model.classifier import Classifier, load_classifier
from serve.model.session import Model
from tests.references import PICTURES
from tests.serve.conftest import ClientFor


def post(client: TestClient, picture: bytes, **query: Any) -> Any:
    return client.post("/upload", content=picture, headers={"Content-Type": "image/jpeg"}, params=query)


def large_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.open(PICTURES / "rgb.jpg").resize((1600, 1200)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.mark.parametrize(("decode", "reduced"), [(Config().decode, True), ("exact", False)])
def test_decoding_is_fast_by_default_and_exact_where_asked(config: Config, decode: str, reduced: bool) -> None:
    picture = large_jpeg()
    batches = []
    for changed in (replace(config, decode=decode), replace(config, decode="exact")):
        classifier = load_classifier(changed)
        batches.append(classifier.prepare(classifier.open(picture, 1)).batch)
        classifier.close()
    assert (np.abs(batches[0] - batches[1]).max() > 0) == reduced  # libjpeg reduces as it reads


def test_images_are_turned_upright_by_default(client_for: ClientFor) -> None:
    upright, turned = ((PICTURES / f"orientation_{number}.jpg").read_bytes() for number in (1, 6))

    def first(client: TestClient, picture: bytes) -> Any:
        return post(client, picture, top_k=5).json()["top_k"]

    turning, leaving = client_for(exif_orientation=True), client_for(exif_orientation=False)
    assert first(turning, upright) == first(leaving, upright)
    assert first(turning, turned) != first(leaving, turned)


@pytest.mark.parametrize(
    ("setting", "picture", "status", "words"),
    [
        ({"max_frames": 1}, "animated.gif", 413, "1"),
        ({"max_frames": 2}, "animated.gif", 200, ""),
    ],
)
def test_an_images_limits_are_those_of_the_settings(
    client_for: ClientFor, setting: dict[str, int], picture: str, status: int, words: str
) -> None:
    answer = post(client_for(**setting), (PICTURES / picture).read_bytes())
    assert answer.status_code == status
    assert status == 200 or words in answer.json()["detail"]


@pytest.mark.parametrize(("pixels", "status"), [(600 * 500, 200), (600 * 500 - 1, 413)])
def test_an_image_may_have_as_many_pixels_as_the_setting_and_no_more(
    client_for: ClientFor, pixels: int, status: int
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (600, 500)).save(buffer, "PNG")
    assert post(client_for(max_pixels=pixels), buffer.getvalue()).status_code == status


def test_the_seconds_of_each_stage_are_its_own(
    classifier: Classifier, cat: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def add_seconds(owner: Any, name: str, seconds: float) -> None:
        original = getattr(owner, name)

        def step(*arguments: Any) -> Any:
            nonlocal now
            now += seconds
            return original(*arguments)

        monkeypatch.setattr(owner, name, step)

    decoders = Mock()
    decoders.decode.return_value = Crop(bytes(224 * 224 * 3), 3, 4, (640, 480))
    using = replace(classifier, decoders=decoders)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    add_seconds(module, "normalise", 2)
    add_seconds(Model, "logits", 8)
    assert using.classify(cat, 1).seconds == {"decode": 3, "preprocess": 6, "infer": 8}
