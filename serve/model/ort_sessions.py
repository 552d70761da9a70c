"""Creates onnxruntime's sessions."""

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy.typing as npt

from serve.config.regular_file import open_regular
from serve.errors import ModelError
from serve.imaging.malloc import has_huge_pages
from serve.imaging.normalise import Batch
from serve.model.huge_code import move_code_to_huge_pages
from serve.model.openvino_plugin import use_openvino

# onnxruntime's Linux wheel sends usage statistics unless this is set before its first import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

INPUT_NAME: Final = "input"
OUTPUT_NAME: Final = "logits"
LOGITS: Final = (OUTPUT_NAME,)
_FATAL: Final = 4  # onnxruntime's log severity; errors are reported as ModelError instead
_CPU_PROVIDER: Final = "CPUExecutionProvider"
_CUDA_PROVIDER: Final = "CUDAExecutionProvider"

Array = npt.NDArray[Any]
Session: TypeAlias = ort.InferenceSession
Value: TypeAlias = ort.OrtValue


def run(session: Session, batch: Batch, outputs: Sequence[str] = LOGITS) -> list[Array]:
    """Returns outputs of a batch in one inference; onnxruntime copies no others."""
    values: list[Array] = session.run(outputs, {INPUT_NAME: batch})
    return values


def cpu_session(path: Path, threads: int) -> Session:
    """Returns a session of onnxruntime's CPU provider; raises whatever onnxruntime does."""
    options = _session_options(threads)
    _share_arena()
    _move_code()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Threads spin while they wait for each other during an inference, which is fastest, and sleep after it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return _create_session(path, options, [_CPU_PROVIDER])


def openvino_session(path: Path, batch: int, streams: int, threads: int, cache_folder: Path | None) -> Session:
    """Returns a session of OpenVINO's plug-in for batches of one size.

    Args:
        streams: the number of batches that it runs at once.
        threads: of all streams together.
        cache_folder: where OpenVINO keeps the compiled model; None for nowhere.

    Raises:
        ModelError: the plug-in does not start, or the file has no such dimension.
        Exception: whatever onnxruntime raises.
    """
    options = _session_options(1)
    use_openvino(options, batch, streams, threads, cache_folder)
    session = _create_session(path, options)
    if session.get_inputs()[0].shape[0] != batch:
        raise ModelError(f"model {path}: the name of its first dimension is not batch, so it cannot be static")
    return session


def cuda_session(path: Path) -> Session:
    """Returns a session of the CUDA provider.

    Raises:
        ModelError: this onnxruntime has no CUDA, or it does not start.
        Exception: whatever onnxruntime raises.
    """
    if _CUDA_PROVIDER not in ort.get_available_providers():
        raise ModelError(
            f"engine=cuda: the installed onnxruntime {ort.__version__} has no CUDA; install requirements/gpu.txt "
            "(see docs/operating.md)"
        )
    with redirect_stdout(sys.stderr):  # it prints which libraries are missing
        ort.preload_dlls()  # from where pip installs CUDA and cuDNN, which the loader does not search
    session = _create_session(path, _session_options(1), [_CUDA_PROVIDER, _CPU_PROVIDER])
    if _CUDA_PROVIDER not in session.get_providers():  # onnxruntime falls back, and reports it only in its own log
        raise ModelError(
            "engine=cuda: CUDA does not start here; its libraries or its device are missing (see docs/operating.md)"
        )
    return session


def _session_options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL
    return options


def _create_session(path: Path, options: Any, providers: list[str] | None = None) -> Session:
    with open_regular(path) as file:
        utf8 = str(path).encode("utf-8", "replace").decode() == str(path)
        # onnxruntime takes a name in UTF-8 only; a descriptor has one, whatever the file's own name is.
        name = str(path) if utf8 else f"/proc/self/fd/{file.fileno()}"
        return ort.InferenceSession(name, options, providers=providers)


@cache
def _share_arena() -> None:
    """Makes all sessions allocate from one arena, which grows by what is requested and not by powers of two.

    Every input has the same shape, so the arena grows to what concurrent calls need and then stays.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # 1 is kSameAsRequested, -1 onnxruntime's default.
    growth = {"arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"max_mem": 0, **growth}))


@cache
def _move_code() -> None:
    """Moves onnxruntime's code to huge pages if malloc uses them too."""
    if has_huge_pages():
        move_code_to_huge_pages(Path(ort.capi.onnxruntime_pybind11_state.__file__))
