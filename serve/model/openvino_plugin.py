"""OpenVINO's plug-in for onnxruntime; the export measures with it what the server runs with it."""

import json
import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, Final

from serve.config.cpus import cpu_vendor
from serve.errors import ModelError

# onnxruntime's Linux wheel sends usage statistics unless this is set before its first import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

PLUGIN: Final = "onnxruntime_ep_openvino"
_VENDOR: Final = "GenuineIntel"  # of the CPUs that the plug-in offers; OpenVINO itself runs on others, too
_BATCH_DIMENSION: Final = "batch"  # the name of N in the files that the export writes
_loading = Lock()


def obstacle() -> str:
    """Returns why the plug-in cannot run here; empty if it can."""
    name = PLUGIN.replace("_", "-")
    if find_spec(PLUGIN) is None:
        return f"the plug-in {name} is not installed"
    if cpu_vendor() != _VENDOR:
        return f"the plug-in {name} runs on Intel's CPUs only"
    return ""


def use_openvino(
    options: ort.SessionOptions, batch: int, streams: int, threads: int, cache_folder: Path | None = None
) -> None:
    """Makes a session with these options run on OpenVINO alone, for batches of one size.

    Args:
        options: of the session.
        batch: images in a batch. With the batch unknown, OpenVINO takes 1.6 times as long.
        streams: the number of batches that it runs at once.
        threads: of all streams together; 0 leaves the number to OpenVINO.
        cache_folder: where OpenVINO keeps the compiled model; None for nowhere.

    Raises:
        ModelError: the plug-in does not start.
    """
    options.add_free_dimension_override_by_name(_BATCH_DIMENSION, batch)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",  # by default, what is not 8 bits would be bf16 on a CPU with AMX
        "ENABLE_CPU_PINNING": "NO",  # decoders use the same CPUs: with 16 clients it gains 6 % images a second
    }
    if cache_folder:
        settings["CACHE_DIR"] = str(cache_folder)
    with _loading:
        cpu = _cpu()
    options.add_provider_for_devices([cpu], {"load_config": json.dumps({"CPU": settings})})


@cache
def _cpu() -> Any:
    """Loads the plug-in, once in a process, and returns the CPU as its device."""
    try:
        plugin = import_module(PLUGIN)
        ort.register_execution_provider_library("openvino", plugin.get_library_path())
        name, cpu = plugin.get_ep_name(), ort.OrtHardwareDeviceType.CPU
        return next(each for each in ort.get_ep_devices() if each.ep_name == name and each.device.type == cpu)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise ModelError(
            f"engine=openvino: the plug-in {PLUGIN} does not start with onnxruntime {ort.__version__}; install the "
            "versions of requirements/openvino.txt, or use engine=cpu"
        ) from error
