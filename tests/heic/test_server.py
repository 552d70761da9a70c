"""A server with the extra takes HEIC everywhere that it takes images, and says so."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from serve.config.settings import ROOT
from serve.imaging.other_process import threads_of
from tests.heic.pictures import FOLDER
from tests.heic.test_decoding import with_size
from tests.hostile.deaths import children_of
from tests.serve.test_sealed_server import FLAGS
from tests.serve.test_v2 import framed, images, infer, logits_of
from tests.server_process import running_server
from tests.tiny_model import PATH as TINY_MODEL

LIST = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC"
RGB = (FOLDER / "rgb.heic").read_bytes()
LIBRARIES = re.compile("libheif|libde265|_pi_heif")


def test_an_image_is_classified_in_each_form(client: TestClient) -> None:
    labels = set()
    for request in (
        {"files": {"file": ("photo.heic", RGB, "image/heic")}},
        {"content": RGB, "headers": {"Content-Type": "image/heif"}},
        {"content": RGB, "headers": {"Content-Type": "application/octet-stream"}},
    ):
        answer = client.post("/upload", **request)
        assert answer.status_code == 200, answer.text
        labels.add(answer.json()["label"])
    assert len(labels) == 1
    raw = framed(RGB)
    answer = infer(client, images(1, parameters={"binary_data_size": len(raw)}), raw)
    assert logits_of(answer).shape[0] == 1


def test_errors_are_those_of_other_formats(client: TestClient) -> None:
    damaged = client.post("/upload", files={"file": RGB[:-100]})
    assert damaged.status_code == 422
    assert damaged.json()["detail"] == "The HEIC image cannot be decoded: it is truncated or corrupt."
    large = client.post("/upload", files={"file": with_size(RGB, 20_000, 20_000)})
    assert large.status_code == 413
    assert "20000 × 20000 pixels; the limit is 50000000 pixels" in large.json()["detail"]


def test_messages_the_page_and_the_openapi_document_list_it(client: TestClient) -> None:
    refused = client.post("/upload", files={"file": b"text"})
    assert refused.status_code == 415
    assert refused.json()["detail"].endswith(f"those are {LIST}.")
    page = client.get("/", headers={"Accept": "text/html"}).text
    assert f"{LIST}; up to " in page
    assert 'image/avif,image/heic,image/heif"' in page
    upload = client.get("/openapi.json").json()["paths"]["/upload"]["post"]
    assert f"Accepted formats are {LIST}." in upload["description"]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_servers_own_processes_load_no_decoder(workers: int) -> None:
    with running_server(sys.executable, *FLAGS, "--workers", str(workers), "--max-decode-ms", "30000") as server:
        for path in sorted(FOLDER.iterdir()):
            answer = httpx2.post(f"{server.url}/upload", files={"file": path.read_bytes()}, timeout=60)
            assert answer.status_code == 200, f"{path.name}: {answer.text}"
        assert 'decoders="sealed"' in httpx2.get(f"{server.url}/metrics").text
        own = [server.process.pid, *(children_of(server.process.pid) if workers > 1 else [])]
        fork_servers = children_of(own[-1])
        assert fork_servers
        for pid in own:
            assert not LIBRARIES.search(Path(f"/proc/{pid}/maps").read_text())
        for pid in fork_servers:
            assert LIBRARIES.search(Path(f"/proc/{pid}/maps").read_text())
            assert threads_of(pid) == [pid]


def test_a_server_that_decodes_in_its_own_process_accepts_it_too() -> None:
    with running_server(sys.executable, *FLAGS, "--sandbox", "off") as server:
        assert httpx2.post(f"{server.url}/upload", files={"file": RGB}, timeout=30).status_code == 200


def test_classify_accepts_it() -> None:
    paths = [str(FOLDER / name) for name in ("rgb.heic", "grid.heic", "general_brand.heif")]
    command = [sys.executable, "-m", "serve", "classify", "--model", str(TINY_MODEL), "--jsonl", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["label" in record for record in records] == [True] * 3


@pytest.mark.parametrize(("heic", "installed"), [("", False), ("0", False), ("1", True)])
def test_make_installs_the_extra_if_told_to(heic: str, installed: bool) -> None:
    command = ["make", "--dry-run", "serve", f"HEIC={heic}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ("requirements/runtime.txt requirements/heic.txt" in done.stdout) == installed
