"""Reads the manifests of deploy/kubernetes: the objects of each kustomization, and their containers."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.server_process import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
UNITS = {"": 1.0, "m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


class ManifestError(Exception):
    """A manifest has fields that these tests do not know, or not exactly one object of a kind."""


def rendered(folder: Path) -> list[dict[str, Any]]:
    """Returns the objects that `kubectl apply -k` would create from a folder.

    Raises:
        ManifestError: The kustomization has fields that are not supported here.
    """
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unsupported = kustomization.keys() - {"apiVersion", "kind", "resources"}
    if unsupported or kustomization["kind"] != "Kustomization":
        raise ManifestError(
            f"{folder.name}/kustomization.yaml has {sorted(unsupported)}, which tests/manifests.py does not support"
        )
    objects: list[dict[str, Any]] = []
    for name in kustomization["resources"]:
        path = folder / name
        objects += rendered(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    return objects


def only(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Returns the one object of a kind.

    Raises:
        ManifestError: There is not exactly one.
    """
    found = [each for each in objects if each["kind"] == kind]
    if len(found) != 1:
        raise ManifestError(f"{len(found)} objects of kind {kind}, not one")
    return found[0]


def quantity(text: str | int) -> float:
    """Parses a quantity of Kubernetes: CPUs or bytes.

    Raises:
        ManifestError: The text is not a quantity.
    """
    match = re.fullmatch(r"([0-9.]+)(m|k|M|G|Ki|Mi|Gi|)", str(text))
    if not match:
        raise ManifestError(f"{text!r} is not a quantity")
    return float(match[1]) * UNITS[match[2]]


@dataclass(frozen=True)
class Container:
    """The only container of a pod.

    Attributes:
        spec: The container's specification.
        pod: The pod's specification.
    """

    spec: dict[str, Any]
    pod: dict[str, Any]

    @classmethod
    def of(cls, pod: dict[str, Any]) -> "Container":
        [spec] = pod["containers"]
        return cls(spec, pod)

    @property
    def environment(self) -> dict[str, str]:
        return {entry["name"]: entry["value"] for entry in self.spec.get("env", [])}

    @property
    def settings(self) -> dict[str, str]:
        """The server's settings in the environment."""
        return {name: value for name, value in self.environment.items() if name.startswith("SERVE_")}

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.spec["ports"]}

    @property
    def probes(self) -> dict[str, tuple[str, int | None]]:
        """Path and port of each probe; the port is None if no port has the name that the probe gives."""
        asked = {kind: self.spec[kind]["httpGet"] for kind in self.spec if kind.endswith("Probe")}
        return {
            kind: (get["path"], self.ports.get(get["port"]) if isinstance(get["port"], str) else get["port"])
            for kind, get in asked.items()
        }

    @property
    def cpus(self) -> float:
        return quantity(self.spec["resources"]["limits"]["cpu"])

    @property
    def memory(self) -> float:
        return quantity(self.spec["resources"]["limits"]["memory"])


def containers() -> dict[str, Container]:
    """Returns the containers that run the image: the Deployment's and the InferenceService's."""
    deployment = only(rendered(FOLDER / "base"), "Deployment")
    service = only(rendered(FOLDER / "kserve"), "InferenceService")
    return {
        "Deployment": Container.of(deployment["spec"]["template"]["spec"]),
        "InferenceService": Container.of(service["spec"]["predictor"]),
    }
