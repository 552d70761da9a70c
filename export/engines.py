"""Sessions on the engine that a model file is made for: onnxruntime's CPU provider, or OpenVINO as its plug-in."""

import json
import sys
from pathlib import Path
from typing import Final

import onnx
import onnxruntime as ort

from export.errors import EngineError
from serve.model import openvino_plugin

CPU: Final = "cpu"
OPENVINO: Final = "openvino"
ENTRY: Final = "engine"  # of a file's metadata, in JSON; without it the engine is `CPU`


def engine_of(model: bytes) -> str:
    """Returns the engine that a model file is made for, as its metadata says."""
    entries = {entry.key: entry.value for entry in onnx.load_model_from_string(model).metadata_props}
    return str(json.loads(entries.get(ENTRY, json.dumps(CPU))))


def int8_files(output: Path) -> dict[str, Path]:
    """Returns where the int8 model of each engine goes."""
    return {CPU: output.with_suffix(".int8.onnx"), OPENVINO: output.with_suffix(".qdq.onnx")}


def require_openvino() -> None:
    """Checks that OpenVINO's plug-in can run here.

    Raises:
        EngineError: it cannot.
    """
    if obstacle := openvino_plugin.obstacle():
        raise EngineError(
            f"{obstacle}; it exists for Linux on x86-64 and Intel's CPUs, and was looked for in {sys.prefix}"
        )


def open_session(model: bytes, threads: int) -> ort.InferenceSession:
    """Opens a session for one image at a time on the file's own engine, with the server's options.

    Args:
        model: the file's content.
        threads: that compute one image; 0 leaves the number to the engine.

    Raises:
        EngineError: OpenVINO's plug-in cannot run here, or cannot run the file.
    """
    if engine_of(model) == OPENVINO:
        return _open_openvino_session(model, threads)
    options = ort.SessionOptions()
    options.inter_op_num_threads = 1
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _open_openvino_session(model: bytes, threads: int) -> ort.InferenceSession:
    require_openvino()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # OpenVINO has threads of its own
    try:
        openvino_plugin.use_openvino(options, 1, 1, threads)
        return ort.InferenceSession(model, options)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise EngineError(f"OpenVINO cannot run the model: {error}") from error
