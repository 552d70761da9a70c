"""`make serve` in a fresh tree, over HTTP, on photographs: the labels are PyTorch's, and they are right."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import DenseNet121_Weights

from benchmarks.harness.servers import free_port
from serve.config.settings import ROOT
from serve.model.class_index import load_class_index
from serve.model.labels import Label
from tests.export.conftest import REAL
from tests.make_process import fresh_tree, make, wait_until_ready
from tests.server_process import running_server

RIGHT_AT_LEAST = 0.8


@dataclass(frozen=True)
class Uploaded:
    """A photograph, the server's answer, and the label of PyTorch with torchvision's own transforms."""

    path: Path
    answer: dict[str, Any]
    wanted: Label


@pytest.fixture(scope="module")
def uploaded(exported: Path, network: nn.Module, photographs: Path, runtime_python: Path) -> list[Uploaded]:
    labels = load_class_index(ROOT / "imagenet_class_index.json", 1000)
    preset = DenseNet121_Weights.IMAGENET1K_V1.transforms()
    seen = []
    with running_server(
        runtime_python, "--model", str(exported), "--decode", "exact", "--log-format", "json"
    ) as server:
        for path in sorted(photographs.iterdir()):
            response = httpx2.post(f"{server.url}/upload", files={"file": (path.name, path.read_bytes())})
            assert response.status_code == 200, path.name
            with torch.no_grad():
                number = int(network(preset(Image.open(path).convert("RGB"))[None])[0].argmax())
            seen.append(Uploaded(path, response.json(), labels[number]))
        assert server.stop() == 0
    return seen


def test_uploads_get_pytorchs_labels(uploaded: list[Uploaded]) -> None:
    assert len(uploaded) >= 3
    for each in uploaded:
        said = each.answer["imagenet_id"], each.answer["label"]
        assert said == (each.wanted.imagenet_id, each.wanted.name), each.path.name


if REAL:

    def test_and_those_are_right(uploaded: list[Uploaded]) -> None:
        right = sum(each.path.name.startswith(f"{each.answer['imagenet_id']}_") for each in uploaded)
        print(f"\n{right} of {len(uploaded)} photographs labelled right, all as by PyTorch")
        assert len(uploaded) >= 50
        assert right >= RIGHT_AT_LEAST * len(uploaded)


def test_make_serve_exports_once_serves_and_ends_with_its_signal(
    tmp_path: Path, exported: Path, weights: Path, photographs: Path
) -> None:
    tree = fresh_tree(tmp_path / "clone")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ["serve", f"WEIGHTS={weights}", f"PHOTOS={photographs}", f"PORT={port}"]
    first = make(tree, *arguments)
    wait_until_ready(first, url, 300)
    assert httpx2.get(f"{url}/").text == "Server is Running\n"
    card = httpx2.get(f"{url}/model").json()
    os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C does: make and the server both get the signal
    output, log = first.communicate(timeout=60)
    assert "check parity with PyTorch" in output
    assert "Traceback" not in log
    # int8 is served if it passed its gate, and the model card contains the table that the export printed.
    int8 = exported.with_suffix(".int8.onnx")
    assert (card["name"], card["variant"]) == (exported.stem, "int8" if int8.exists() else "fp32")
    assert ("no int8 model, fp32 is served" in log) is not int8.exists()
    assert {row["variant"] for row in card["measured"]["table"]} == ({"fp32", "int8"} if int8.exists() else {"fp32"})
    # The same inputs gave the same bytes, in another folder.
    for made in (path for path in (exported, int8, exported.with_suffix(".qdq.onnx")) if path.exists()):
        assert (tree / "models" / made.name).read_bytes() == made.read_bytes()

    second = make(tree, *arguments, "MODEL_VARIANT=fp32")
    wait_until_ready(second, url, 30)
    assert httpx2.get(f"{url}/model").json()["variant"] == "fp32"
    second.terminate()
    output, log = second.communicate(timeout=60)
    assert "parity" not in output  # the existing model is served again
    assert "Traceback" not in log
    with pytest.raises(httpx2.TransportError):
        httpx2.get(url)
