"""The server with the environment of each manifest: probes, metrics, threads, settings and shutdown."""

import json
import math
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from serve.config.cpus import cgroup_quota
from serve.config.settings import load_config
from tests.kubernetes.conftest import TABLE
from tests.manifests import FOLDER, Container, containers, only, quantity, rendered
from tests.server_process import ROOT, ServerProcess, running_server

PYTHON = ROOT / ".venv" / "runtime" / "bin" / "python"
CONTAINERS = containers()


@pytest.fixture(scope="module", params=CONTAINERS)
def which(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def container(which: str) -> Container:
    return CONTAINERS[which]


@pytest.fixture(scope="module")
def server(container: Container) -> Iterator[ServerProcess]:
    with running_server(PYTHON, "--log-format", "json", environment=container.environment) as started:
        yield started


def test_every_probe_is_answered(which: str, container: Container, server: ServerProcess) -> None:
    assert container.probes.keys() >= {"readinessProbe", "livenessProbe"}
    for kind, (path, port) in container.probes.items():
        assert port == load_config([], {}).port, kind
        assert requests.get(server.url + path, timeout=5).status_code == 200, kind
        assert (
            requests.get(f"{server.url}{path}y", timeout=5).status_code == 404
        )  # other paths are not answered with 200
    TABLE.append((which, f"probes: {', '.join(sorted({path for path, _ in container.probes.values()}))} answer 200"))


def test_prometheus_finds_metrics_where_the_monitor_says(server: ServerProcess) -> None:
    [endpoint] = only(rendered(FOLDER / "prometheus"), "ServiceMonitor")["spec"]["endpoints"]
    text = requests.get(server.url + endpoint["path"], timeout=5).text
    names = {family.name for family in text_string_to_metric_families(text)}
    assert 'decoders="sealed"' in text
    assert {"serve_requests", "serve_queue_depth"} <= names  # docs/kubernetes.md scales by the second
    assert quantity(endpoint["scrapeTimeout"].removesuffix("s")) < quantity(endpoint["interval"].removesuffix("s"))
    TABLE.append(("ServiceMonitor", f"{endpoint['path']} gives {len(names)} metrics"))


def test_the_model_is_named_as_the_inference_service(server: ServerProcess) -> None:
    """KServe's clients use the InferenceService's name as that of the model."""
    name = only(rendered(FOLDER / "kserve"), "InferenceService")["metadata"]["name"]
    served = requests.get(f"{server.url}/model", timeout=5).json()["name"]
    ready = requests.get(f"{server.url}/v2/models/{name}/ready", timeout=5)
    assert ready.status_code == (200 if served == name else 404)  # without an export another model is served


def test_settings_are_taken_from_the_environment(container: Container) -> None:
    done = subprocess.run(
        [str(PYTHON), "-m", "serve", "config"],
        cwd=ROOT, env=container.environment | {"ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    printed = dict(line.split(None, 1) for line in done.stdout.splitlines())
    for variable, value in container.settings.items():
        shown = printed[variable.removeprefix("SERVE_").lower()]
        assert shown.split() == [value, "environment", variable]


@pytest.mark.parametrize("version", [1, 2])
def test_the_cpu_limit_is_the_number_of_threads(tmp_path: Path, container: Container, version: int) -> None:
    """The limit is written to cgroup files of either version as the kubelet does, and read by the server's code."""
    quota = int(container.cpus * 100_000)
    mount, group, files = {
        1: ("/sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct", "4:cpu,cpuacct:/",
            {"cpu/cpu.cfs_quota_us": str(quota), "cpu/cpu.cfs_period_us": "100000"}),
        2: ("/sys/fs/cgroup rw - cgroup2 cgroup2 rw", "0::/", {"cpu.max": f"{quota} 100000"}),
    }[version]  # fmt: skip
    texts = {"proc/self/mountinfo": f"31 23 0:29 / {mount}\n", "proc/self/cgroup": f"{group}\n"}
    for name, text in (texts | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    read = cgroup_quota(tmp_path)
    assert read == math.floor(read or 0) == container.cpus


def test_it_stops_in_time_beside_an_endless_upload(which: str, container: Container) -> None:
    """An upload that never ends delays the stop longest: it is closed after half of the grace period."""
    config = load_config([], container.settings)
    with running_server(PYTHON, "--log-format", "json", environment=container.environment) as ending:
        address = urlsplit(ending.url)
        with socket.create_connection((address.hostname or "", address.port or 0), timeout=5) as client:
            client.sendall(
                b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: 9999\r\n\r\n"
            )
            client.sendall(b"\xff\xd8")
            time.sleep(0.3)
            began = time.monotonic()
            ending.process.terminate()
            while ending.process.poll() is None:
                assert time.monotonic() - began < config.grace_seconds + 2, json.dumps(ending.log[-3:])
                try:
                    client.sendall(b"\0")
                except OSError:
                    time.sleep(0.1)
                time.sleep(0.1)
            took = time.monotonic() - began
        assert ending.process.returncode == 0
    assert config.grace_seconds / 2 - 1 < took < config.grace_seconds
    TABLE.append((which, f"ends {took:.1f} s after SIGTERM, with an upload that never ends"))
