"""deploy/compose runs the image as it says: with its limits, its health check and models from a folder."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.container.engine import DOCKER, ROOT, docker
from tests.tiny_model import PATH as TINY_MODEL

FOLDER = ROOT / "deploy" / "compose"
PROJECT = "densenet-server-test"
HEALTHY_SECONDS = 60.0


def compose_command() -> list[str]:
    """Returns the command: Docker's plug-in, or the program that Debian has."""
    if subprocess.run([DOCKER, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [DOCKER, "compose"]
    assert shutil.which("docker-compose"), "these tests need compose: apt-get install docker-compose"
    return ["docker-compose"]


def compose(file: Path, *arguments: str) -> str:
    """Runs a command of compose, and returns what it prints."""
    place = ["--file", str(file), "--project-directory", str(FOLDER), "--project-name", PROJECT]
    environment = {name: value for name, value in os.environ.items() if name != "MODELS"}
    command = [*compose_command(), *place, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Composed:
    """A running container: what `docker inspect` tells, and the server's address."""

    inspected: dict[str, Any]
    url: str


@contextmanager
def composed(image: str, models: Path, folder: Path, **settings: str) -> Iterator[Composed]:
    """Runs the service as its file says, with this image, models and settings, on a free port.

    Where the engine has no bridge network, the service is on the host's.
    """
    file = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    service = file["services"]["server"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert service["ports"] == ["127.0.0.1:5000:5000"]
    if docker("network", "ls", "--filter", "driver=bridge", "--quiet"):
        service["ports"] = [f"127.0.0.1:{port}:5000"]
    else:
        del service["ports"]
        service |= {"network_mode": "host"}
        settings |= {"SERVE_HOST": "127.0.0.1", "SERVE_PORT": str(port)}
    service["image"] = image
    service["volumes"] = [volume.replace("${MODELS:-../../models}", str(models)) for volume in service["volumes"]]
    service["environment"] |= settings
    changed = folder / "compose.yaml"
    changed.write_text(yaml.safe_dump(file))
    try:
        compose(changed, "up", "--detach", "--no-build")
        (inspected,) = json.loads(docker("inspect", compose(changed, "ps", "--quiet").strip()))
        yield Composed(inspected, f"http://127.0.0.1:{port}")
    finally:
        compose(changed, "down", "--timeout", "10")


def test_compose_accepts_the_file() -> None:
    assert compose(FOLDER / "compose.yaml", "config", "--quiet") == ""


def test_the_container_has_its_limits_and_reports_its_health(image_name: str, cat: bytes, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    with composed(image_name, models, tmp_path) as container:
        host = container.inspected["HostConfig"]
        assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (1792 * 2**20, 2 * 10**9, 128)
        assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False)
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        (volume,) = container.inspected["Mounts"]
        assert (volume["Destination"], volume["RW"]) == ("/models", False)
        await_health(container)
        assert 'decoders="sealed"' in httpx2.get(f"{container.url}/metrics").text
        answer = httpx2.post(f"{container.url}/upload", files={"file": ("cat.jpg", cat)})
        assert (answer.json()["label"], answer.json()["model"]) == ("Egyptian_cat", "densenet121")  # the image's own


def test_a_model_in_the_volume_is_served_by_name(image_name: str, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(TINY_MODEL, models / "mine.onnx")
    tmp_path.chmod(0o755)
    with composed(
        image_name, models, tmp_path, SERVE_MODEL="mine", SERVE_MODEL_VARIANT="auto", SERVE_MAX_FILES="3"
    ) as container:
        await_health(container)
        assert httpx2.get(f"{container.url}/model").json()["name"] == "tiny"


def await_health(container: Composed) -> None:
    """Waits until the engine's health check has succeeded."""
    give_up = time.monotonic() + HEALTHY_SECONDS
    while True:
        state = json.loads(docker("inspect", "--format", "{{json .State}}", container.inspected["Id"]))
        if state["Health"]["Status"] == "healthy":
            return
        if state["Status"] != "running" or time.monotonic() > give_up:
            pytest.fail(f"the container is not healthy: {state}\n{docker('logs', container.inspected['Id'])}")
        time.sleep(0.2)
