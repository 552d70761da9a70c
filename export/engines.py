"""Sessions on the engine that a model file is made for: onnxruntime's CPU provider, or OpenVINO as its plug-in."""

import importlib.util
import json
import sys
from functools import cache
from typing import Any, Final

import onnx
import onnxruntime as ort

from export.errors import EngineError

CPU: Final = "cpu"
OPENVINO: Final = "openvino"
ENTRY: Final = "engine"  # of a file's metadata, in JSON; without it the engine is `CPU`
_PLUG_IN: Final = "onnxruntime_ep_openvino"


def engine_of(model: bytes) -> str:
    """Returns the engine that a model file is made for, as its metadata says."""
    entries = {entry.key: entry.value for entry in onnx.load_model_from_string(model).metadata_props}
    return str(json.loads(entries.get(ENTRY, json.dumps(CPU))))


def has_openvino() -> bool:
    """Returns whether OpenVINO's plug-in is installed."""
    return importlib.util.find_spec(_PLUG_IN) is not None


def require_openvino() -> None:
    """Checks that OpenVINO's plug-in is installed.

    Raises:
        EngineError: it is not.
    """
    if not has_openvino():
        raise EngineError(
            f"the package {_PLUG_IN.replace('_', '-')} is not installed in {sys.prefix}; it exists for Linux on x86-64"
        )


def open_session(model: bytes, threads: int) -> ort.InferenceSession:
    """Opens a session for one image at a time on the file's own engine, with the server's options.

    Args:
        model: the file's content.
        threads: that compute one image; 0 leaves the number to the engine.

    Raises:
        EngineError: OpenVINO's plug-in is not installed, or cannot run the file.
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
    options.add_free_dimension_override_by_name("batch", 1)  # with the batch unknown it takes 1.6 times as long
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # what is measured is OpenVINO alone
    # By default, what is not 8 bits would be bf16 on a CPU with AMX.
    config = {"NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    try:
        options.add_provider_for_devices([_openvino_device()], {"load_config": json.dumps({"CPU": config})})
        return ort.InferenceSession(model, options)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise EngineError(f"OpenVINO cannot run the model: {error}") from error


@cache
def _openvino_device() -> Any:
    plug_in = importlib.import_module(_PLUG_IN)
    ort.register_execution_provider_library(OPENVINO, plug_in.get_library_path())
    kind = ort.OrtHardwareDeviceType.CPU
    return next(
        device
        for device in ort.get_ep_devices()
        if device.ep_name == plug_in.get_ep_name() and device.device.type == kind
    )
