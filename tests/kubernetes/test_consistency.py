"""Consistency of the manifests and their document: names, labels, ports, and settings that depend on each other."""

import copy
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.config.settings import Config, load_config
from tests.kubernetes.conftest import TABLE
from tests.kubernetes.schemas import problems
from tests.manifests import FOLDER, Container, containers, only, quantity, rendered
from tests.server_process import ROOT

Objects = list[dict[str, Any]]
FOLDERS = sorted(path.parent.name for path in FOLDER.glob("*/kustomization.yaml"))
CONTAINERS = containers()
KUBECTL = shutil.which("kubectl")
# RSS under load with the fork server (docs/serving.md), the most memory that a pixel of a large image takes, and that a
# decoder of a smaller image takes (SECURITY.md).
RSS_BYTES = 170e6
BYTES_A_PIXEL = 17
SMALL_DECODER_BYTES = 112 * 2**20
EXPLANATION_BYTES = 19e6  # of the largest picture, while it is drawn and written (SECURITY.md)
# Kubernetes' default, which KServe does not allow to be set.
DEFAULT_GRACE_SECONDS = 30


def most_memory(config: Config, pixels: int, cpus: float) -> float:
    """Returns the bytes that a server may need, by the formula of SECURITY.md."""
    streams = int(cpus)
    busy = streams + max(1, streams // 2)
    small_decoders = SMALL_DECODER_BYTES * (busy + streams) + config.max_request_bytes * busy
    large = BYTES_A_PIXEL * pixels + EXPLANATION_BYTES * streams
    return RSS_BYTES + config.max_upload_bytes + large + small_decoders


def inconsistencies(objects: Objects) -> list[str]:
    """Returns the inconsistencies among the objects of one folder that has a Deployment."""
    deployment = only(objects, "Deployment")
    template = deployment["spec"]["template"]
    ports = Container.of(template["spec"]).ports
    service = only(objects, "Service")
    offered = {port["name"] for port in service["spec"]["ports"]}
    target = only(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    identity = (deployment["apiVersion"], "Deployment", deployment["metadata"]["name"])
    wrong = [] if (target["apiVersion"], target["kind"], target["name"]) == identity else ["the autoscaler's target"]
    if "replicas" in deployment["spec"]:
        wrong.append("replicas are set, but the autoscaler manages them")
    selectors = {
        "the Deployment": deployment["spec"]["selector"]["matchLabels"],
        "the Service": service["spec"]["selector"],
        "the disruption budget": only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    }
    for i, spread in enumerate(template["spec"]["topologySpreadConstraints"]):
        selectors[f"spread {i}"] = spread["labelSelector"]["matchLabels"]
    for policy in [each for each in objects if each["kind"] == "NetworkPolicy"]:
        name = policy["metadata"]["name"]
        selectors[f"policy {name}"] = policy["spec"]["podSelector"]["matchLabels"]
        opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        wrong += [f"policy {name} opens {port}" for port in opened - ports.keys()]
    labels = template["metadata"]["labels"]
    wrong += [f"{who} selects other pods" for who, chosen in selectors.items() if not chosen.items() <= labels.items()]
    wrong += [
        f"the Service's {port['targetPort']}" for port in service["spec"]["ports"] if port["targetPort"] not in ports
    ]
    for monitor in [each for each in objects if each["kind"] == "ServiceMonitor"]:
        if not monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items():
            wrong.append("the monitor selects another Service")
        wrong += [f"the monitor's {end['port']}" for end in monitor["spec"]["endpoints"] if end["port"] not in offered]
    return wrong


@pytest.mark.parametrize("folder", ["base", "prometheus"])
def test_names_labels_and_ports_fit(folder: str) -> None:
    assert inconsistencies(rendered(FOLDER / folder)) == []


POD = ["spec", "template"]


@pytest.mark.parametrize(
    ("kind", "way", "value", "found"),
    [
        ("Service", ["spec", "ports", 0, "targetPort"], "web", "the Service's web"),
        ("Service", ["spec", "selector"], {"app": "other"}, "the Service selects other pods"),
        ("Service", ["spec", "ports", 0, "name"], "web", "the monitor's http"),
        ("Service", ["metadata", "labels"], {"app": "other"}, "the monitor selects another Service"),
        ("HorizontalPodAutoscaler", ["spec", "scaleTargetRef", "name"], "other", "the autoscaler's target"),
        (
            "PodDisruptionBudget",
            ["spec", "selector", "matchLabels", "a"],
            "b",
            "the disruption budget selects other pods",
        ),
        ("Deployment", [*POD, "metadata", "labels"], {}, "the Deployment selects other pods"),
        ("Deployment", [*POD, "spec", "containers", 0, "ports", 0, "name"], "web", "policy densenet-server opens http"),
        ("Deployment", ["spec", "replicas"], 2, "replicas are set, but the autoscaler manages them"),
    ],
)
def test_an_inconsistency_is_found(kind: str, way: list[Any], value: Any, found: str) -> None:
    objects = copy.deepcopy(rendered(FOLDER / "prometheus"))
    place: Any = only(objects, kind)
    for step in way[:-1]:
        place = place[step]
    place[way[-1]] = value
    assert found in inconsistencies(objects)


def test_every_file_is_part_of_a_kustomization() -> None:
    named = {
        path.resolve()
        for folder in FOLDERS
        for name in yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())["resources"]
        if (path := FOLDER / folder / name).is_file()
    }
    assert named == {path for path in FOLDER.rglob("*.*") if path.name != "kustomization.yaml"}


@pytest.mark.parametrize("which", CONTAINERS)
def test_settings_exist_and_are_valid(which: str) -> None:
    container = CONTAINERS[which]
    assert set(container.settings) <= {f"SERVE_{name.upper()}" for name in Config.__dataclass_fields__}
    assert container.settings
    load_config([], container.settings)
    assert container.environment.keys() - container.settings.keys() <= {"PROTOCOL"}


@pytest.mark.parametrize("which", CONTAINERS)
def test_the_server_stops_within_the_pods_grace_period(which: str) -> None:
    container = CONTAINERS[which]
    config = load_config([], container.settings)
    sleep = container.spec.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    left = container.pod.get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS) - sleep
    assert config.grace_seconds < left
    assert config.grace_seconds / 2 * 1000 >= config.request_timeout_ms  # the first half is for uploads still arriving
    TABLE.append((which, f"ends within {config.grace_seconds} of {left} s"))


@pytest.mark.parametrize("which", CONTAINERS)
def test_the_memory_limit_covers_the_settings(which: str) -> None:
    container = CONTAINERS[which]
    config = load_config([], container.settings)
    needed = most_memory(config, config.max_pixels, container.cpus)
    assert needed <= container.memory
    TABLE.append((which, f"{container.memory / 1e6:.0f} MB; its settings can take {needed / 1e6:.0f}"))


@pytest.mark.parametrize("which", CONTAINERS)
def test_requested_cpus_are_the_number_of_threads(which: str) -> None:
    container = CONTAINERS[which]
    resources = container.spec["resources"]
    assert resources["requests"] == resources["limits"]  # the QoS class Guaranteed
    assert container.cpus == int(container.cpus) >= 1
    assert quantity(resources["requests"]["cpu"]) == container.cpus
    assert load_config([], container.settings).threads in (0, container.cpus)


def test_both_run_the_image_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {container.spec["image"] for container in CONTAINERS.values()} == {f"densenet-server:{version}"}


@pytest.mark.parametrize("which", CONTAINERS)
def test_user_and_port_are_those_of_the_dockerfile(which: str) -> None:
    runtime = (ROOT / "Dockerfile").read_text().split("AS runtime\n")[1].split("\nFROM ")[0]
    security = CONTAINERS[which].spec["securityContext"]
    assert re.findall(r"^USER (.+)", runtime, re.MULTILINE) == [f"{security['runAsUser']}:{security['runAsGroup']}"]
    assert re.findall(r"^EXPOSE (.+)", runtime, re.MULTILINE) == [
        str(port) for port in CONTAINERS[which].ports.values()
    ]
    assert security["readOnlyRootFilesystem"] and security["runAsNonRoot"] and not security["allowPrivilegeEscalation"]


def test_kserve_recognises_the_open_inference_protocol() -> None:
    container = CONTAINERS["InferenceService"]
    assert container.environment["PROTOCOL"] == "v2"
    assert container.spec["name"] == "kserve-container"
    assert list(container.ports) == ["http1"]
    for forbidden in ("lifecycle", "terminationGracePeriodSeconds"):  # Knative does not allow them
        assert forbidden not in {*container.spec, *container.pod}


def kustomized(folder: Path) -> Objects:
    """Returns the objects that a real kustomize creates from a folder."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=60)
    return list(yaml.safe_load_all(done.stdout))


def in_order(objects: Objects) -> Objects:
    return sorted(objects, key=lambda each: (each["kind"], each["metadata"]["name"]))


# kubectl includes kustomize. It is not in any package index, so it is compared only if it is installed.
READERS: dict[str, Callable[[Path], Objects]] = {"these tests": rendered}
if KUBECTL:
    READERS["kubectl"] = kustomized


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomize_reads_a_folder_as_these_tests_do(folder: str, reader: str) -> None:
    objects = in_order(READERS[reader](FOLDER / folder))
    assert objects == in_order(rendered(FOLDER / folder))
    kinds = [each["kind"] for each in objects]
    assert len({(each["kind"], each["metadata"]["name"]) for each in objects}) == len(kinds)
    TABLE.append((f"{folder}/, as {reader} read{'s' if reader == 'kubectl' else ''} it", ", ".join(kinds)))


def test_the_examples_of_the_document_are_valid(tmp_path: Path) -> None:
    overlay, metric = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "kubernetes.md").read_text(), re.DOTALL)
    scaler = copy.deepcopy(only(rendered(FOLDER / "base"), "HorizontalPodAutoscaler"))
    scaler["spec"]["metrics"].append(yaml.safe_load(metric))
    assert problems(scaler) == []
    kustomization = yaml.safe_load(overlay)
    [image], [patch] = kustomization["images"], kustomization["patches"]
    assert {container.spec["image"] for container in CONTAINERS.values()} == {f"{image['name']}:{image['newTag']}"}
    values = {change["path"].split("/")[-1]: change["value"] for change in yaml.safe_load(patch["patch"])}
    pixels = int(values["-"]["value"])
    limits = values["resources"]["limits"]
    assert values["-"]["name"] == "SERVE_MAX_PIXELS"
    assert most_memory(Config(), pixels, quantity(limits["cpu"])) <= quantity(limits["memory"])
    if KUBECTL:
        for name in FOLDERS:
            folder = tmp_path / name
            (folder / "mine").mkdir(parents=True)
            shutil.copytree(ROOT / "deploy", folder / "deploy")
            text = overlay.replace("/kubernetes/prometheus", f"/kubernetes/{name}")
            text = text if name != "kserve" else text.split("patches:")[0]
            (folder / "mine" / "kustomization.yaml").write_text(text)
            objects = kustomized(folder / "mine")
            assert [wrong for each in objects for wrong in problems(each)] == []
            assert {each["metadata"]["namespace"] for each in objects} == {"pictures"}
            pod = only(objects, "InferenceService")["spec"]["predictor"] if name == "kserve" else None
            made = Container.of(pod or only(objects, "Deployment")["spec"]["template"]["spec"])
            assert made.spec["image"] == "REGISTRY/densenet-server:0.1.0"
            assert pod or (made.cpus, made.settings["SERVE_MAX_PIXELS"]) == (4, str(pixels))
