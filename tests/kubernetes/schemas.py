"""Validates objects against the published schemas of Kubernetes, the Prometheus operator and KServe.

Each function returns a list of problems. No package has the schemas of the operator and of KServe themselves, so the
models generated from them are used.
"""

import re
from typing import Any

import kserve.models
import kubernetes.client
import kubernetes_validate
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor
from pydantic import ValidationError

# The oldest version that has all fields used here (preStop.sleep), and the newest with a published schema.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
SCALARS: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "bool": bool,
    "int": int,
    "float": (int, float),
    "datetime": str,
}


def problems(thing: dict[str, Any]) -> list[str]:
    match thing["apiVersion"]:
        case "monitoring.coreos.com/v1":
            return service_monitor(thing)
        case "serving.kserve.io/v1beta1":
            return inference_service(thing)
        case _:
            return core(thing)


def core(thing: dict[str, Any]) -> list[str]:
    """Validates against Kubernetes' OpenAPI document; unknown fields are errors."""
    found = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(thing, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{version}: {'.'.join(map(str, error.path))}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError as error:
            found.append(f"{version}: {error}")
    return found


def service_monitor(thing: dict[str, Any]) -> list[str]:
    """Validates with the operator's model. It drops unknown fields, so the result is compared with the input."""
    try:
        known = ServiceMonitor.model_validate(thing)
    except ValidationError as error:
        return [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return list(_dropped(thing, known.model_dump(mode="json", by_alias=True, exclude_unset=True), ""))


def _dropped(given: Any, kept: Any, where: str) -> list[str]:
    match given, kept:
        case dict(), dict():
            missing = [f"{where}{name}: there is no such field" for name in given.keys() - kept.keys()]
            return missing + [
                each
                for name in given.keys() & kept.keys()
                for each in _dropped(given[name], kept[name], f"{where}{name}.")
            ]
        case list(), list() if len(given) == len(kept):
            return [
                each for i, pair in enumerate(zip(given, kept, strict=True)) for each in _dropped(*pair, f"{where}{i}.")
            ]
        case _:
            return [] if given == kept else [f"{where[:-1]}: {given!r} is read as {kept!r}"]


def inference_service(thing: dict[str, Any]) -> list[str]:
    """Validates against KServe's models, and the pod against Kubernetes' own schema, which is stricter."""
    predictor = thing["spec"].get("predictor", {})
    fields = set(kubernetes.client.V1PodSpec.attribute_map.values())
    pod = {name: value for name, value in predictor.items() if name in fields}
    wrong = walk(thing, "V1beta1InferenceService", "")
    return wrong + core({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod})


def walk(value: Any, kind: str, where: str) -> list[str]:
    """Compares a value with a type of KServe's or Kubernetes' client.

    Args:
        value: The value.
        kind: The type's name.
        where: Path of the value, with a dot at its end.
    """
    if match := re.fullmatch(r"list\[(.+)\]|List\[(.+)\]", kind):
        if not isinstance(value, list):
            return [f"{where[:-1]}: {value!r} is not a list"]
        return [each for i, item in enumerate(value) for each in walk(item, match[1] or match[2], f"{where}{i}.")]
    if match := re.fullmatch(r"(?:dict\(|Dict\[)str, (.+)[)\]]", kind):
        if not isinstance(value, dict):
            return [f"{where[:-1]}: {value!r} is not a mapping"]
        return [each for name, item in value.items() for each in walk(item, match[1], f"{where}{name}.")]
    if kind in ("object", "ResourceQuantity"):  # Kubernetes' own schema checks these
        return []
    if kind in SCALARS:
        right = isinstance(value, SCALARS[kind]) and (kind == "bool" or not isinstance(value, bool))
        return [] if right else [f"{where[:-1]}: {value!r} is not a {kind}"]
    model = getattr(kserve.models, kind, None) or getattr(kubernetes.client, kind)
    if not isinstance(value, dict):
        return [f"{where[:-1]}: {value!r} is not a {kind}"]
    types = {model.attribute_map[name]: each for name, each in model.openapi_types.items()}
    wrong = [f"{where}{name}: there is no such field" for name in value.keys() - types.keys()]
    return wrong + [
        each for name in value.keys() & types.keys() for each in walk(value[name], types[name], f"{where}{name}.")
    ]
