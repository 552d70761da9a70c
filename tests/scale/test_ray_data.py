"""deploy/ray/classify.py on a local Ray cluster: it writes the rows of `python -m serve classify`, and resumes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import pyarrow.parquet
import pytest
import ray

from deploy.ray.classify import finished_files, main
from tests.constant_model import constant_model
from tests.server_process import ROOT
from tests.tiny_model import PATH as TINY_MODEL

RUNTIME = ROOT / ".venv" / "runtime" / "bin" / "python"
PHOTOS = ROOT / "tests" / "data" / "photos"


pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's, about its own settings


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    environment = {"PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": environment}, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    for number in range(30):
        (folder / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"{number % 3}" / f"{number:02}.jpg").symlink_to(sorted(PHOTOS.glob("*.jpg"))[number % 3])
    (folder / "half.jpg").write_bytes((PHOTOS / "cat.jpg").read_bytes()[:9000])
    (folder / "notes.txt").write_text("hello")
    (folder / "empty.jpg").touch()
    (folder / "a b%20 (1)?.jpg").symlink_to(PHOTOS / "cat.jpg")  # not valid in a URL without escaping
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows, sorted, without empty fields, as in JSON lines."""
    found = [row for part in sorted(folder.glob("*.parquet")) for row in pyarrow.parquet.read_table(part).to_pylist()]
    return sorted(
        ({key: value for key, value in row.items() if value is not None} for row in found), key=lambda row: row["file"]
    )


def classified(folder: Path) -> list[dict[str, Any]]:
    command = [str(RUNTIME), "-m", "serve", "classify", str(folder), "--model", str(TINY_MODEL), "--jsonl"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda row: row["file"])


def test_the_rows_are_those_of_the_command_and_a_restart_adds_what_is_missing(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("_PART_ROWS", "_BATCH_ROWS"):
        monkeypatch.setattr(sys.modules["deploy.ray.classify"], name, 4)
    output = tmp_path / "rows"
    arguments = [str(tree), "--output", str(output), "--set", f"model={TINY_MODEL}"]
    assert main(arguments) == 1  # three files are not images
    wanted = classified(tree)
    assert len(wanted) == 34
    assert rows(output) == wanted
    parts = sorted(output.glob("*.parquet"))
    assert len(parts) > 2

    # As after an interruption: one part missing, one cut off.
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:-20])
    left = {row["file"] for row in rows_of(parts[2:])}
    assert main(arguments) == 1
    assert rows(output) == wanted
    told = capsys.readouterr().err
    assert f"34 files, {len(left)} of them already done" in told
    assert f"{parts[1]} is incomplete; its files are classified again" in told
    assert finished_files(str(output)) == {row["file"] for row in wanted}

    before = sorted(output.glob("*.parquet"))
    assert main(arguments) == 1
    assert sorted(output.glob("*.parquet")) == before


def rows_of(parts: list[Path]) -> list[dict[str, Any]]:
    return [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]


def test_a_bucket_is_read_like_a_folder(tree: Path, tmp_path: Path) -> None:
    """`file://` stands for all URLs: pyarrow lists and opens it as it does a bucket."""
    output = tmp_path / "rows"
    assert main([tree.as_uri(), "--output", str(output), "--set", f"model={TINY_MODEL}", "--top-k", "2"]) == 1
    found = rows(output)
    assert [row["file"].rpartition("/")[2] for row in found if "status" in row] == [
        "empty.jpg",
        "half.jpg",
        "notes.txt",
    ]
    wanted = {Path(row["file"]).name: row for row in classified(tree)}
    for row in found:
        ours = wanted[Path(row["file"]).name]
        assert row.get("imagenet_id") == ours.get("imagenet_id")
        assert row.get("status") == ours.get("status")
        assert len(row.get("top_k", [0, 0])) == 2


@pytest.mark.parametrize("ids", [None, ["n1", "n2"]])
def test_a_model_with_labels_of_its_own_has_its_classes(tmp_path: Path, ids: list[str] | None) -> None:
    model, output = tmp_path / "mine.onnx", tmp_path / "rows"
    model.write_bytes(constant_model([1.0, 2.0], name="mine", labels=["cat", "dog"], ids=ids, activation="sigmoid"))
    assert main([str(PHOTOS / "cat.jpg"), "--output", str(output), "--set", f"model={model}"]) == 0
    (row,) = [row for part in output.glob("*.parquet") for row in pyarrow.parquet.read_table(part).to_pylist()]
    assert (row["label"], row["imagenet_id"], row["model"]) == ("dog", ids and "n2", "mine")
    assert row["top_k"] == [
        {"index": 1, "imagenet_id": ids and "n2", "label": "dog", "probability": 0.880797},
        {"index": 0, "imagenet_id": ids and "n1", "label": "cat", "probability": 0.731059},
    ]
