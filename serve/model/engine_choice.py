"""Chooses the engine that runs the model, and the file that it runs."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serve.config.cpus import cpu_features
from serve.errors import ModelError
from serve.model.files import AUTO, QDQ_SUFFIX, find_model, qdq_file
from serve.model.openvino_plugin import obstacle as plugin_obstacle

CPU: Final = "cpu"
OPENVINO: Final = "openvino"
CUDA: Final = "cuda"
# As Linux names the instructions for 8-bit products and for matrix products of 8-bit values.
_VNNI: Final = {"avx512_vnni", "avx_vnni"}
_AMX: Final = "amx_int8"


@dataclass(frozen=True)
class EngineChoice:
    """An engine, the model file that it runs, and why it was chosen."""

    engine: str
    path: Path
    reason: str


def choose_engine(
    engine: str, model: str, variant: str, folders: Sequence[Path], features: AbstractSet[str] | None = None
) -> EngineChoice:
    """Chooses the engine and finds its model file.

    `auto` is OpenVINO where its plug-in is installed, its file is there and the CPU has AMX, and otherwise `cpu`. On
    CPUs without AMX the two are equally fast, so `auto` takes OpenVINO there only if there is no other file. `cpu` runs
    OpenVINO's file if it is the only one, slower than the integer file.

    Args:
        engine: the setting.
        model: as for `find_model`.
        variant: as for `find_model`.
        folders: as for `find_model`.
        features: what the CPU can do, as `cpu_features` returns it; by default this CPU.

    Raises:
        ModelError: there is no such file, or OpenVINO cannot run here.
    """
    if engine == CUDA:  # the operators of int8 files are the CPU's
        if variant == "int8":
            raise ModelError("engine=cuda runs fp32 models, but model_variant=int8 is set; set it to fp32 or auto")
        variant = "fp32"
    path = find_model(model, variant, *folders)
    if engine not in (AUTO, OPENVINO):
        return EngineChoice(engine, path, f"engine={engine} is set")
    # A file that is named is the one to serve.
    file = path if model.endswith(".onnx") else qdq_file(path)
    features = cpu_features() if features is None else features
    obstacle = _obstacle(file, variant, features)
    if engine == OPENVINO:
        if obstacle:
            raise ModelError(f"engine={engine}: OpenVINO cannot run the model: {obstacle}; see docs/operating.md")
        return EngineChoice(OPENVINO, file, f"engine={engine} is set")
    if not obstacle and _AMX not in features and file != path:
        obstacle = "the CPU has no AMX"
    if obstacle:
        return EngineChoice(CPU, path, obstacle)
    return EngineChoice(OPENVINO, file, "the CPU has AMX" if _AMX in features else f"{file.name} is its file")


def _obstacle(file: Path, variant: str, features: AbstractSet[str]) -> str:
    """Returns why OpenVINO cannot run the file here; empty if it can."""
    if variant == "fp32":
        return "model_variant=fp32 is set"
    if plugin := plugin_obstacle():
        return plugin
    if not file.name.endswith(QDQ_SUFFIX):
        return f"{file.name} is not a file *{QDQ_SUFFIX}"
    if not file.is_file():
        return f"there is no {file.name}, which 'make export' writes"
    if not _VNNI & features:
        return "the CPU has no VNNI, without which 8-bit products saturate"
    return ""
