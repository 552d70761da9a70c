"""A fresh tree, `make serve`, real HTTP, real photographs: the labels are PyTorch's, and right."""

import os
import signal
import subprocess
import time
from pathlib import Path

import httpx2
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import DenseNet121_Weights

from serve.config import ROOT
from serve.postprocess import load_class_index
from tests.project_copy import copy_of_the_project
from tests.server_process import running_server

RIGHT_AT_LEAST = 0.8
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


def test_uploads_get_pytorchs_labels_and_they_are_right(
    exported: Path, network: nn.Module, photographs: Path, photo_folder: Path | None, weights_file: Path | None,
    runtime_python: Path,
) -> None:  # fmt: skip
    labels = load_class_index(ROOT / "imagenet_class_index.json", 1000)
    preset = DenseNet121_Weights.IMAGENET1K_V1.transforms()
    paths = sorted(photographs.iterdir())
    right = 0
    with running_server(
        runtime_python, "--model", str(exported), "--decode", "exact", "--log-format", "json"
    ) as server:
        for path in paths:
            answer = httpx2.post(f"{server.url}/upload", files={"file": (path.name, path.read_bytes())})
            assert answer.status_code == 200, path.name
            with torch.no_grad():
                wanted = labels[int(network(preset(Image.open(path).convert("RGB"))[None])[0].argmax())]
            assert answer.json()["imagenet_id"] == wanted.imagenet_id, path.name
            assert answer.json()["label"] == wanted.name
            right += path.name.startswith(f"{wanted.imagenet_id}_")
        assert server.stop() == 0
    print(f"\n{right} of {len(paths)} photographs labelled right, all {len(paths)} as by PyTorch")
    if photo_folder is not None and weights_file is not None:
        assert len(paths) >= 50
        assert right >= RIGHT_AT_LEAST * len(paths)


@pytest.fixture
def fresh_tree(tmp_path: Path) -> Path:
    """The project's own files as a clone has them, with the environments that are already made."""
    tree = copy_of_the_project(tmp_path / "clone")
    (tree / ".venv").symlink_to(ROOT / ".venv")
    return tree


def make(tree: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    # WEIGHTS and PHOTOS of this test run must not reach the make under test, nor its jobserver
    inherited = {
        key: value for key, value in os.environ.items() if key not in {"WEIGHTS", "PHOTOS", "MAKEFLAGS", "MFLAGS"}
    }
    return subprocess.Popen(
        ["make", *arguments],
        cwd=tree,
        env={**inherited, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, which a test can send Ctrl-C to
    )


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_until_ready(process: subprocess.Popen[str], url: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if httpx2.get(f"{url}/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_make_serve_exports_once_serves_and_ends_with_its_signal(
    fresh_tree: Path, exported: Path, weights: Path, photographs: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ["serve", f"WEIGHTS={weights}", f"PHOTOS={photographs}", f"PORT={port}"]
    first = make(fresh_tree, *arguments)
    wait_until_ready(first, url, 300)
    assert httpx2.get(f"{url}/").text == "Server is Running\n"
    card = httpx2.get(f"{url}/model").json()
    os.killpg(first.pid, signal.SIGINT)  # what Ctrl-C does: make and the server both get it
    output, log = first.communicate(timeout=60)
    assert "check parity with PyTorch" in output
    assert "Traceback" not in log
    # int8 is served if it passed its gate, and the card has the table that the export printed.
    int8 = exported.with_suffix(".int8.onnx")
    assert (card["name"], card["variant"]) == ("densenet121", "int8" if int8.exists() else "fp32")
    assert ("no int8 model, fp32 is served" in log) is not int8.exists()
    assert {row["variant"] for row in card["measured"]["table"]} == ({"fp32", "int8"} if int8.exists() else {"fp32"})
    # The same inputs gave the same bytes, in another folder.
    for made in [exported, int8] if int8.exists() else [exported]:
        assert (fresh_tree / "models" / made.name).read_bytes() == made.read_bytes()

    second = make(fresh_tree, *arguments, "MODEL_VARIANT=fp32")
    wait_until_ready(second, url, 30)
    assert httpx2.get(f"{url}/model").json()["variant"] == "fp32"
    second.terminate()
    output, log = second.communicate(timeout=60)
    assert "parity" not in output  # what was exported is served again
    assert "Traceback" not in log
    with pytest.raises(httpx2.TransportError):
        httpx2.get(url)


def test_make_serve_without_weights_or_network_serves_the_embedded_model_and_says_so(
    fresh_tree: Path, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = make(
        fresh_tree, "serve", f"PORT={port}", TORCH_HOME=str(tmp_path), https_proxy=NOWHERE, http_proxy=NOWHERE
    )
    wait_until_ready(process, url, 60)
    picture = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
    answer = httpx2.post(f"{url}/upload", files={"file": ("cat.jpg", picture)}).json()
    assert answer["model"] == "efficientnet_lite0"
    assert "cat" in answer["label"]
    assert httpx2.get(f"{url}/model").json()["name"] == "efficientnet_lite0"
    process.terminate()
    _, log = process.communicate(timeout=60)
    assert "Serving the small embedded model EfficientNet-Lite0 instead" in log
    assert "DenseNet-121 is not exported; serving the small embedded model" in log  # the server's own log says it too


def test_make_serve_that_insists_on_densenet_says_what_to_do(fresh_tree: Path, tmp_path: Path) -> None:
    """The hub's cache is empty and the proxy refuses: the one error names what was tried and WEIGHTS=PATH."""
    environment = {"TORCH_HOME": str(tmp_path), "https_proxy": NOWHERE, "http_proxy": NOWHERE}
    process = make(fresh_tree, "serve", "MODEL=densenet121", **environment)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 2
    for words in ("densenet121-a639ec97.pth is not there", "cannot be reached", "make serve WEIGHTS=PATH"):
        assert words in log
    assert "Traceback" not in log
    assert not list((fresh_tree / "models").glob("densenet121*"))


def test_make_names_a_weights_file_that_is_not_there(fresh_tree: Path) -> None:
    process = make(fresh_tree, "serve", "WEIGHTS=none.pth")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert log.startswith("WEIGHTS=none.pth: no such file\n")


def test_make_alone_prints_the_targets(fresh_tree: Path) -> None:
    process = make(fresh_tree)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    for words in ("make serve", "make test", "make export", "make check", "WEIGHTS", "PHOTOS", "PORT"):
        assert words in output
