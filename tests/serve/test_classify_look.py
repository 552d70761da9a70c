"""Tests of `classify --explain` and `classify --embeddings`."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from serve.model.classifier import Classifier
from tests.serve.conftest import PHOTOS
from tests.serve.test_classify import classify, records
from tests.serve.test_explain import drawn, embedding_of


def test_classify_writes_embeddings_and_the_names_beside_them(
    cat: bytes, coffee: bytes, classifier: Classifier, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in (("a.jpg", cat), ("b\n.jpg", coffee), ("broken.jpg", cat[:500])):
        (folder / name).write_bytes(data)
    status, output, error = classify(folder, "--embeddings", folder / "e.npy", "--decode", "exact", "--top-k", 1)
    assert status == 1
    assert all("embedding" not in record for record in records(output))
    assert [record["file"] for record in records(output)] == [
        str(folder / name) for name in ("a.jpg", "b\n.jpg", "broken.jpg")
    ]
    vectors = np.load(folder / "e.npy")
    assert (vectors.dtype, vectors.shape) == (np.float32, (2, 3))
    np.testing.assert_array_equal(vectors, [embedding_of(classifier, cat), embedding_of(classifier, coffee)])
    assert (folder / "e.txt").read_text().splitlines() == [f"{folder}/a.jpg", f"{folder}/b\\n.jpg"]
    assert f"2 embeddings of 3 numbers in {folder}/e.npy, their files in {folder}/e.txt" in error


def test_classify_draws_a_picture_for_each_image(cat: bytes, coffee: bytes, client: TestClient, tmp_path: Path) -> None:
    folder, maps = tmp_path / "in", tmp_path / "in" / "maps"
    (folder / "sub").mkdir(parents=True)
    for path, data in (("a.jpg", cat), ("notes.jpg", b"hello"), ("sub/a.jpg", coffee)):
        (folder / path).write_bytes(data)
    status, output, error = classify(folder, "--explain", maps, "--decode", "exact")
    assert status == 1
    assert len(records(output)) == 3  # the pictures are not classified
    first, second = sorted(maps.iterdir(), key=lambda path: len(path.name))
    assert first.name == "a.jpg.png"
    assert second.name.startswith("a.jpg (")
    for picture, data in ((first, cat), (second, coffee)):
        with Image.open(picture) as image:
            np.testing.assert_array_equal(np.asarray(image), drawn(client, data))
    assert f"2 pictures of where the network looked in {maps}" in error
    assert classify(folder, "--explain", maps)[2].endswith(f"{maps} is not empty; choose another --explain\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--embeddings", "e.bin"], "--embeddings=e.bin: its name must end in .npy"),
        (["--embeddings", "e.npy", "--resume", "--output", "o.jsonl"], "leave out --resume"),
        (["--explain", "maps", "--resume", "--output", "o.jsonl"], "leave out --resume"),
        (["--explain", "/dev/null"], "output /dev/null: file exists; choose another --explain"),
        (["--embeddings", "e.npy", "--output", "./e.npy"], "--embeddings=e.npy writes e.npy, too, which is --output"),
        (["--embeddings", "e.npy", "--html", "e.txt"], "--embeddings=e.npy writes e.txt, too, which is --html"),
        (["--embeddings", "/nowhere/e.npy"], "output /nowhere/e.npy: no such file or directory"),
    ],
)
def test_options_of_classify_that_cannot_be_are_refused(arguments: list[str], words: str) -> None:
    status, output, error = classify(PHOTOS / "cat.jpg", *arguments)
    assert (status, output) == (2, "")
    assert words in error


def test_a_run_that_is_refused_leaves_no_embeddings(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.png").touch()
    made = tmp_path / "e.npy"
    status, _, error = classify(PHOTOS / "cat.jpg", "--embeddings", made, "--explain", tmp_path / "full")
    assert (status, "is not empty; choose another --explain" in error) == (2, True)
    assert not made.exists()
    assert classify(PHOTOS / "cat.jpg", "--embeddings", made)[0] == 0
    assert np.load(made).shape == (1, 3)
    error = classify(PHOTOS / "cat.jpg", "--embeddings", made)[2]
    assert error.endswith(f"output file {made} is not empty; choose another --embeddings\n")


def test_a_pipe_for_embeddings_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "e.npy")
    status, _, error = classify(PHOTOS / "cat.jpg", "--embeddings", tmp_path / "e.npy")
    assert (status, "e.npy: not a regular file; choose another" in error) == (2, True)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "e.npy").symlink_to("/dev/full")
    status, _, error = classify(
        PHOTOS / "cat.jpg", "--embeddings", tmp_path / "e.npy", "--output", tmp_path / "o.jsonl"
    )
    assert status == 2
    assert "no space left on device" in error


@pytest.mark.parametrize("option", ["--explain", "--embeddings"])
def test_a_model_without_feature_maps_is_refused(option: str, featureless: Path, tmp_path: Path) -> None:
    status, _, error = classify(PHOTOS / "cat.jpg", "--model", featureless, option, tmp_path / "made.npy")
    assert status == 2
    assert f"{option}: The file of the model constant names no feature maps" in error
    assert list(tmp_path.iterdir()) == []
