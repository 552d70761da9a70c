"""The programs in docs/model-files.md make a file that is served as it says."""

import re
import subprocess
import sys
from pathlib import Path

import httpx2

from serve.model.engines import EngineOptions
from serve.model.session import load_model
from tests.documents import ROOT
from tests.server_process import running_server

PROGRAM = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_the_documents_programs_make_a_file_that_is_served(tmp_path: Path, runtime_python: Path) -> None:
    programs = PROGRAM.findall((ROOT / "docs" / "model-files.md").read_text(encoding="utf-8"))
    assert len(programs) == 2
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(programs)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    cat = (ROOT / "tests" / "data" / "photos" / "cat.jpg").read_bytes()
    with running_server(runtime_python, "--model", str(tmp_path / "mine.onnx"), "--log-format", "json") as server:
        answer = httpx2.post(f"{server.url}/upload", files=[("file", ("a.jpg", cat)), ("file", ("b.jpg", cat))]).json()
    for result in answer["results"]:
        assert {entry["label"] for entry in result["top_k"]} == {"bird", "dog", "cat"}
        assert result["model"] == "mine"
        assert "imagenet_id" not in result
    model = load_model(tmp_path / "mine.onnx", EngineOptions())
    assert model.features
    assert model.features.length == 512
