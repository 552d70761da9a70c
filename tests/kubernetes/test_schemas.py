"""Validates every manifest against the published schema of its kind, offline, and checks that mistakes are found."""

import copy
import re
from typing import Any

import pytest

from tests.kubernetes.conftest import TABLE
from tests.kubernetes.schemas import VERSIONS, problems
from tests.manifests import FOLDER, only, rendered

OBJECTS = [*rendered(FOLDER / "prometheus"), *rendered(FOLDER / "kserve")]


@pytest.mark.parametrize("thing", OBJECTS, ids=lambda thing: f"{thing['kind']}-{thing['metadata']['name']}")
def test_an_object_is_valid(thing: dict[str, Any]) -> None:
    assert problems(thing) == []
    core = not re.search(r"coreos|kserve", thing["apiVersion"])
    TABLE.append((thing["kind"], f"{thing['apiVersion']}, valid in Kubernetes {' and '.join(VERSIONS)}" if core else
                  f"{thing['apiVersion']}, valid in its operator's models"))  # fmt: skip


CONTAINER = "spec.template.spec.containers.0"
KSERVE = "spec.predictor.containers.0"


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", "spec.replica", 2),
        ("Deployment", f"{CONTAINER}.readinesProbe", {}),
        ("Deployment", f"{CONTAINER}.securityContext.runAsUser", "root"),
        ("Deployment", f"{CONTAINER}.lifecycle.preStop.sleep.seconds", "5 s"),
        ("Deployment", f"{CONTAINER}.env.0.value", 20),
        ("Service", "spec.ports.0.targetport", "http"),
        ("HorizontalPodAutoscaler", "spec.maxReplicas", "ten"),
        ("PodDisruptionBudget", "spec.maxUnavailble", 1),
        ("NetworkPolicy", "spec.egress", {}),
        ("ServiceMonitor", "spec.endpoints.0.pth", "/metrics"),
        ("ServiceMonitor", "spec.endpoints.0.path", 5000),
        ("ServiceMonitor", "spec.endpoints.0.interval", "15 seconds"),
        ("ServiceMonitor", "spec.selector.matchLabel", {}),
        ("ServiceMonitor", "spec.endpoints", {}),
        ("InferenceService", "spec.predictors", {}),
        ("InferenceService", "spec.predictor.minReplica", 1),
        ("InferenceService", "spec.predictor.minReplicas", "1"),
        ("InferenceService", f"{KSERVE}.protocolVersion", "v2"),
        ("InferenceService", f"{KSERVE}.readinessProbe.httpGet.pth", "/"),
        ("InferenceService", f"{KSERVE}.readinessProbe.periodSeconds", "5"),
        ("InferenceService", f"{KSERVE}.resources.limits", ["2"]),
        ("InferenceService", f"{KSERVE}.env.1.value", 20),
    ],
)
def test_a_mistake_is_found(kind: str, path: str, value: Any) -> None:
    folder = "kserve" if kind == "InferenceService" else "prometheus" if kind == "ServiceMonitor" else "base"
    thing = copy.deepcopy(only(rendered(FOLDER / folder), kind))
    *way, last = path.split(".")
    place: Any = thing
    for step in way:
        place = place[int(step)] if step.isdecimal() else place[step]
    place[last] = value
    assert problems(thing)
