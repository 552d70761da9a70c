"""Statistics of a network's activations, and the record of them that the project keeps.

They are recorded once, because whoever builds the container image has no photographs.
"""

import base64
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from export.errors import CalibrationError
from export.files import sha256_of
from export.onnx_graph import Array, Graph

Ranges = Mapping[str, tuple[Array, Array]]
RECORDS: Final = Path(__file__).with_name("calibration_data")
_SIGNIFICANT_DIGITS: Final = 3


@dataclass
class Calibration:
    """Statistics by tensor name.

    source: what the set of photographs is called. photographs: file name → sha256 of those used; accuracy must not be
    measured on them. weights_sha256: of the weights used. ranges: minimum and maximum in the exported graph, see
    `observe_ranges`. means, active: of the inputs of Convs in the rewritten graph, see `observe_means`. rounding: of
    Convs' weights, by the Convs' outputs, see `choose_rounding`; others are rounded to the nearest.
    """

    source: str
    photographs: dict[str, str]
    weights_sha256: str | None
    ranges: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    means: dict[str, Array] = field(default_factory=dict)
    active: dict[str, Array] = field(default_factory=dict)
    rounding: dict[str, Array] = field(default_factory=dict)

    def held_out(self, paths: Iterable[Path]) -> list[Path]:
        """Returns the photographs that were not used, compared by content, whatever their names are."""
        used = set(self.photographs.values())
        return [path for path in paths if sha256_of(path) not in used]


def observe_ranges(graph: Graph, batches: Iterable[Array], progress: Callable[[int], None]) -> Ranges:
    """Records the minimum and maximum of every activation that the int8 graph stores.

    Args:
        graph: the exported graph, before any pass.
        batches: images FP32 `[N, 3, S, S]`.
        progress: called with the number of batches done.

    Returns:
        Tensor name → minima, maxima: `[C]` for what a Concat or BatchNorm reads, else `[1]`.
    """
    outputs = [node.output[0] for node in graph.of_type("Conv", "Relu", "Clip", "Add", "MaxPool", "AveragePool")]
    readers = {name: {node.op_type for node in graph.consumers(name)} for name in outputs}
    tensors = [name for name in outputs if readers[name] != {"Relu"} and readers[name] != {"Clip"}]
    by_channel = {name for name in tensors if readers[name] & {"Concat", "BatchNormalization"}}
    seen: dict[str, tuple[Array, Array]] = {}
    for values in values_of(graph, tensors, batches, progress):
        for name, value in values.items():
            channels = value.shape[1] if name in by_channel else 1
            flat = np.moveaxis(value, 1, 0).reshape(channels, -1)
            low, high = flat.min(1), flat.max(1)
            if name in seen:
                low, high = np.minimum(low, seen[name][0]), np.maximum(high, seen[name][1])
            seen[name] = low, high
    return seen


def observe_means(
    graph: Graph, batches: Iterable[Array], progress: Callable[[int], None]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Records what bias correction needs.

    Args:
        graph: the rewritten graph.
        batches: images FP32 `[N, 3, S, S]`, all of one N.
        progress: called with the number of batches done.

    Returns:
        Means of each Conv's and ReduceMean's input, per channel `[C]`; and for inputs that were clipped the share of
        values that lie between the clip's bounds `[C]`.
    """
    clipped = {node.output[0]: node for node in graph.of_type("Min")}
    tensors = sorted({node.input[0] for node in graph.of_type("Conv", "ReduceMean")})
    means: dict[str, Array] = {name: np.zeros(1) for name in tensors}
    active: dict[str, Array] = {name: np.zeros(1) for name in tensors if name in clipped}
    count = 0
    for values in values_of(graph, tensors, batches, progress):
        count += 1
        for name, value in values.items():
            axes = (0, *range(2, value.ndim))
            means[name] = means[name] + value.mean(axes, dtype=np.float64)
            if name in clipped:
                low, high = (graph.constants[f"{name}.{end}"] for end in ("low", "high"))
                active[name] = active[name] + ((value > low) & (value < high)).mean(axes)
    return {k: v / count for k, v in means.items()}, {k: v / count for k, v in active.items()}


def values_of(
    graph: Graph, tensors: list[str], batches: Iterable[Array], progress: Callable[[int], None]
) -> Iterable[dict[str, Any]]:
    """Runs the graph on each batch and yields the values of these tensors."""
    model = graph.to_model()
    present = {value.name for value in model.graph.output}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in tensors
        if name not in present and name != "input"
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = [name for name in tensors if name != "input"]
    for done, batch in enumerate(batches, start=1):
        values = dict(zip(wanted, session.run(wanted, {"input": batch}), strict=True))
        if "input" in tensors:
            values["input"] = batch
        yield values
        progress(done)


def rounded(statistics: Mapping[str, Array]) -> dict[str, Array]:
    """Rounds values as a record does."""
    return {name: np.array(_listed(values)) for name, values in statistics.items()}


def record_file(architecture: str) -> Path:
    """Returns where the project keeps the record of an architecture."""
    return RECORDS / f"{architecture}.json"


def encode(calibration: Calibration) -> bytes:
    """Encodes as JSON for `load`, with a line for each photograph and tensor."""
    content = {
        "source": calibration.source,
        "photographs": calibration.photographs,
        "weights_sha256": calibration.weights_sha256,
        "ranges": {name: [_listed(low), _listed(high)] for name, (low, high) in calibration.ranges.items()},
        "means": {name: _listed(values) for name, values in calibration.means.items()},
        "active": {name: _listed(values) for name, values in calibration.active.items()},
        "rounding": {name: _packed(bits) for name, bits in calibration.rounding.items()},
    }
    lines = []
    for key, value in content.items():
        if isinstance(value, dict):
            inner = ",\n".join(
                f"{json.dumps(name)}:{json.dumps(v, separators=(',', ':'))}" for name, v in value.items()
            )
            lines.append(f"{json.dumps(key)}:{{\n{inner}}}")
        else:
            lines.append(f"{json.dumps(key)}:{json.dumps(value, ensure_ascii=False)}")
    return ("{" + ",\n".join(lines) + "}\n").encode()


def load(path: Path) -> Calibration:
    """Reads a record.

    Raises:
        CalibrationError: the file is missing or is not a record.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Calibration(
            content["source"],
            dict(content["photographs"].items()),
            content["weights_sha256"],
            {name: (np.array(low), np.array(high)) for name, (low, high) in content["ranges"].items()},
            {name: np.array(values) for name, values in content["means"].items()},
            {name: np.array(values) for name, values in content["active"].items()},
            {name: _unpacked(text) for name, text in content["rounding"].items()},
        )
    except (OSError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"calibration {path} cannot be read; record a new one with --calibrate DIR") from error


def _listed(values: Array) -> list[float]:
    return [float(f"{value:.{_SIGNIFICANT_DIGITS}g}") for value in values]


def _packed(values: Array) -> str:
    return base64.b85encode(zlib.compress(values.tobytes(), 9)).decode()


def _unpacked(text: str) -> Array:
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8)
