"""The manifests of deploy/kubernetes: what each folder's kustomization names, and what a container in them says.

Errors that leave here: `ManifestError` for a kustomization that says more than these tests understand.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.server_process import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
UNITS = {"": 1.0, "m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


class ManifestError(Exception):
    """A file that is not understood, or a question that has not one answer."""


def rendered(folder: Path) -> list[dict[str, Any]]:
    """All objects that `kubectl apply -k` would make of a folder."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    surprising = kustomization.keys() - {"apiVersion", "kind", "resources"}
    if surprising or kustomization["kind"] != "Kustomization":
        raise ManifestError(f"{folder.name}/kustomization.yaml has {sorted(surprising)}: teach these tests to read it")
    objects: list[dict[str, Any]] = []
    for name in kustomization["resources"]:
        path = folder / name
        objects += rendered(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    return objects


def only(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The one object of a kind."""
    found = [each for each in objects if each["kind"] == kind]
    if len(found) != 1:
        raise ManifestError(f"{len(found)} of {kind}")
    return found[0]


def quantity(text: str | int) -> float:
    """Kubernetes' quantities: CPUs or bytes."""
    match = re.fullmatch(r"([0-9.]+)(m|k|M|G|Ki|Mi|Gi|)", str(text))
    if not match:
        raise ManifestError(f"{text!r} is no quantity")
    return float(match[1]) * UNITS[match[2]]


@dataclass(frozen=True)
class Container:
    """The one container of a pod's specification."""

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
        """The server's part of the environment."""
        return {name: value for name, value in self.environment.items() if name.startswith("SERVE_")}

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.spec["ports"]}

    @property
    def probes(self) -> dict[str, tuple[str, int | None]]:
        """Path and port of each probe; None for a name of a port that there is not."""
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
    """Those that run the image: the Deployment's and the InferenceService's."""
    deployment = only(rendered(FOLDER / "base"), "Deployment")
    service = only(rendered(FOLDER / "kserve"), "InferenceService")
    return {
        "Deployment": Container.of(deployment["spec"]["template"]["spec"]),
        "InferenceService": Container.of(service["spec"]["predictor"]),
    }
