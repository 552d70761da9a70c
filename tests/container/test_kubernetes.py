"""The image run as in the manifests of deploy/kubernetes: user, limits, ports, settings and probes."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from PIL import Image as Picture

from tests.container.conftest import TABLE
from tests.container.engine import Container, Image, docker, running
from tests.hostile.pictures import encoded
from tests.manifests import FOLDER, containers, only, rendered
from tests.manifests import Container as Manifest

MANIFESTS = containers()
# The most memory that the container took, by version of cgroups: 2 and 1.
PEAKS = ("/sys/fs/cgroup/memory.peak", "/sys/fs/cgroup/memory/memory.max_usage_in_bytes")
CPUS_HERE = len(os.sched_getaffinity(0))


def options(manifest: Manifest) -> list[str]:
    """Translates a container's specification to options of `docker run`, as the kubelet would apply it."""
    security = dict(manifest.spec["securityContext"])
    made = ["--user", f"{security.pop('runAsUser')}:{security.pop('runAsGroup')}"]
    if security.pop("readOnlyRootFilesystem"):
        made.append("--read-only")
    if not security.pop("allowPrivilegeEscalation"):
        made += ["--security-opt", "no-new-privileges"]
    for capability in security.pop("capabilities")["drop"]:
        made += ["--cap-drop", capability]
    assert security.pop("runAsNonRoot")
    assert security.pop("seccompProfile") == {"type": "RuntimeDefault"}  # the engine's default
    assert not security, "fields that are not translated"
    made += ["--cpus", str(min(manifest.cpus, CPUS_HERE)), "--memory", str(int(manifest.memory))]
    for name, value in manifest.environment.items():
        made += ["--env", f"{name}={value}"]
    return made


@pytest.fixture(scope="module", params=MANIFESTS)
def which(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def manifest(which: str) -> Manifest:
    return MANIFESTS[which]


@pytest.fixture(scope="module")
def pod(image_name: str, manifest: Manifest) -> Iterator[Container]:
    with running(image_name, *options(manifest)) as started:
        yield started


def test_user_and_port_are_the_images(image_name: str, manifest: Manifest) -> None:
    config: dict[str, Any] = Image.load(image_name).config["config"]
    security = manifest.spec["securityContext"]
    assert config["User"] == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert security["runAsUser"] > 0
    assert set(config["ExposedPorts"]) == {f"{port}/tcp" for port in manifest.ports.values()}
    assert "SERVE_HOST=0.0.0.0" in config["Env"]  # so no manifest needs to set it
    assert "command" not in manifest.spec
    assert "args" not in manifest.spec


def test_every_probe_is_answered(which: str, pod: Container, manifest: Manifest) -> None:
    for kind, (path, port) in manifest.probes.items():
        assert [port] == list(manifest.ports.values()), kind
        assert httpx2.get(pod.url + path).status_code == 200, kind
        assert httpx2.get(f"{pod.url}{path}y").status_code == 404
    TABLE.setdefault("Kubernetes", []).append(
        f"{which:<34}{', '.join(sorted({path for path, _ in manifest.probes.values()}))}: 200"
    )


def test_it_runs_as_the_manifest_says(pod: Container, manifest: Manifest) -> None:
    status = dict(line.split(":\t", 1) for line in pod.python("print(open('/proc/1/status').read())").splitlines())
    assert set(status["Uid"].split()) == {str(manifest.spec["securityContext"]["runAsUser"])}
    assert int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    printed = dict(line.split(None, 1) for line in pod.run("python", "-m", "serve", "config").stdout.splitlines())
    for variable, value in manifest.settings.items():
        assert printed[variable.removeprefix("SERVE_").lower()].split() == [value, "environment", variable]


def test_it_has_the_threads_of_its_limit(pod: Container, manifest: Manifest) -> None:
    count = int(min(manifest.cpus, CPUS_HERE))
    assert f"with {count} CPU{'s' if count > 1 else ''} (" in pod.log
    assert f"streams {count}, intra-op threads {count})" in pod.log


def test_decoders_are_sealed_under_the_manifests_security_context(pod: Container) -> None:
    assert 'decoders="sealed"' in httpx2.get(f"{pod.url}/metrics").text


def test_the_monitor_finds_metrics(pod: Container) -> None:
    [endpoint] = only(rendered(FOLDER / "prometheus"), "ServiceMonitor")["spec"]["endpoints"]
    assert "\nserve_queue_depth 0.0\n" in httpx2.get(pod.url + endpoint["path"]).text


def test_the_model_is_named_as_the_inference_service(pod: Container) -> None:
    name = only(rendered(FOLDER / "kserve"), "InferenceService")["metadata"]["name"]
    assert httpx2.get(f"{pod.url}/v2/models/{name}/ready").status_code == 200


def test_two_of_the_largest_image_fit_in_the_memory_limit(which: str, pod: Container, cat: bytes) -> None:
    """WebP takes the most memory, because it is decoded in one piece."""
    with Picture.new("RGB", (10_000, 5_000), "navy") as plain:
        large = encoded(plain, format="WEBP", method=0)
    assert int(docker("inspect", "--format", "{{.HostConfig.Memory}}", pod.id)) > 0

    def upload(data: bytes) -> httpx2.Response:
        return httpx2.post(f"{pod.url}/upload", files={"file": ("name", data)}, timeout=60)

    with ThreadPoolExecutor(3) as threads:
        for answer in threads.map(upload, (large, large, cat)):
            assert answer.status_code == 200, answer.text
    assert not pod.state["OOMKilled"]
    code = f"from pathlib import Path\nprint(*(Path(each).read_text() for each in {PEAKS} if Path(each).exists()))"
    peak = int(pod.python(code))
    TABLE.setdefault("Kubernetes", []).append(f"{f'{which}, peak memory of the cgroup, MB':<44}{peak / 1e6:.0f}")
