"""One onnxruntime session over one self-describing model file: FP32 `[N, 3, S, S]` in, logits FP32 `[N, classes]` out.

The only module that imports onnxruntime. Errors that leave here: `ModelError`, and only while loading.
"""

import errno
import hashlib
import json
import os
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from serve.config.regular_file import open_regular, read_text
from serve.errors import ModelError

# onnxruntime's Linux wheel sends usage statistics unless this is set before its first import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

INPUT_NAME: Final = "input"
OUTPUT_NAME: Final = "logits"
# What a file must say of itself to be served; preprocess.py asks for the entries that it needs besides.
_REQUIRED_ENTRIES: Final = ("name", "variant", "class_count")
_MAX_BYTES: Final = 2**31 - 1  # of a protobuf
_MAX_REPORT_BYTES: Final = 2**20
_CPU: Final = "cpu"
_ON_CUDA: Final = {"cuda", "tensorrt"}
_FATAL: Final = 4  # onnxruntime's log severity: our own errors say what is wrong


@dataclass(frozen=True)
class Model:
    """A loaded, warm network.

    card: what the export measured and wrote into the file and its report, with the file's own sha256.
    input_side: S, pixels. class_count: logits a picture. infer_seconds: what the first picture took one thread.
    """

    card: dict[str, Any]
    input_side: int
    class_count: int
    infer_seconds: float
    _throughput_session: ort.InferenceSession
    _latency_session: ort.InferenceSession

    @property
    def name(self) -> str:
        """The architecture's name, such as `densenet121`."""
        return str(self.card["name"])

    def logits(self, batch: npt.NDArray[np.float32], wide: bool = False) -> npt.NDArray[np.float32]:
        """FP32 `[N, 3, S, S]`, normalised → logits FP32 `[N, classes]`.

        On the calling thread alone, which any number of threads may do at a time; or, `wide`, on all intra-op threads.
        """
        return _run(self._latency_session if wide else self._throughput_session, batch)


def load_model(path: Path, intra_op_threads: int, providers: tuple[str, ...] = (_CPU,)) -> Model:
    """Load `path` and run it once, so that what comes back is ready to use.

    intra_op_threads: threads that share one `wide` inference, at least 1. providers: execution providers by their short
    names, the first choice first. Raises `ModelError` naming the file and what to do.
    """
    chosen = _chosen(providers)
    if _ON_CUDA & set(providers):
        with redirect_stdout(sys.stderr):  # it prints what it does not find
            ort.preload_dlls()  # CUDA and cuDNN where pip has put them, which no loader looks at by itself
    try:
        sha256 = _sha256(path)
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise ModelError(f"model {path}: {reason}; make it with 'make export', or name another with --model") from error
    try:
        # Two sessions, because the threads are the session's: at twice 20 MB they cost less than one that is no good at
        # either end of the load. onnxruntime's Python API has no way for them to share packed weights.
        narrow = _session(path, 1, chosen)
        wide = narrow if intra_op_threads == 1 else _session(path, intra_op_threads, chosen)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise ModelError(
            f"model {path} is not a model onnxruntime can load; make it anew with 'make export'"
        ) from error
    missing = [name for name in chosen if name not in narrow.get_providers()]
    if missing:  # onnxruntime goes on without, and says so in its own log only
        raise ModelError(
            f"providers={','.join(providers)}: {missing[0]} does not start here; its libraries or its device "
            "are missing"
        )
    try:
        card = _read_card(narrow)
        side = _input_side(narrow)
        class_count = _class_count(narrow, card)
    except ModelError as error:
        raise ModelError(f"model {path}: {error}; make it anew with 'make export'") from error
    infer_seconds = 0.0
    for session in dict.fromkeys((wide, narrow)):
        started = time.perf_counter()
        if not _warm_up(session, side, class_count):
            raise ModelError(
                f"model {path}: its warm-up gave no {class_count} finite logits; make it anew with 'make export'"
            )
        infer_seconds = time.perf_counter() - started
    card |= {"sha256": sha256, "measured": _measured(path, sha256)}
    return Model(card, side, class_count, infer_seconds, narrow, wide)


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > _MAX_BYTES:
            raise OSError(errno.EFBIG, f"more than {_MAX_BYTES} bytes")
        return hashlib.file_digest(file, "sha256").hexdigest()


def report_file(model: Path) -> Path:
    """Where the export's report on a model file lies: `NAME.json` beside `NAME.onnx` and `NAME.int8.onnx`."""
    return model.with_name(model.name.removesuffix(".onnx").removesuffix(".int8") + ".json")


def _measured(path: Path, sha256: str) -> dict[str, Any] | None:
    """The report that the export wrote beside the file, speed and CPU included; None unless it is of this very file."""
    try:
        report = json.loads(read_text(report_file(path), _MAX_REPORT_BYTES))
        rows = report["table"]
        return {"cpu": report["cpu"], "table": rows} if any(row["sha256"] == sha256 for row in rows) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _warm_up(session: ort.InferenceSession, side: int, class_count: int) -> bool:
    """Whether a first inference, which also makes onnxruntime allocate what it needs, gives finite logits."""
    try:
        logits = _run(session, np.zeros((1, 3, side, side), np.float32))
    except Exception:  # onnxruntime's own exceptions share no base class
        return False
    return logits.shape == (1, class_count) and bool(np.isfinite(logits).all())


def _run(session: ort.InferenceSession, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    outputs: list[npt.NDArray[np.float32]] = session.run([OUTPUT_NAME], {INPUT_NAME: batch})
    return outputs[0]


def _chosen(providers: tuple[str, ...]) -> list[str]:
    """onnxruntime's own names of these execution providers."""
    offered = {name.removesuffix("ExecutionProvider").lower(): name for name in ort.get_available_providers()}
    missing = [name for name in providers if name not in offered]
    if missing:
        raise ModelError(
            f"providers={','.join(providers)}: the installed onnxruntime {ort.__version__} has no "
            f"{', '.join(missing)}; it offers {', '.join(offered)} (docs/operating.md has more on GPUs)"
        )
    return [offered[name] for name in providers]


def _session(path: Path, intra_op_threads: int, providers: list[str]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Within an inference threads wait for each other by spinning, which is fastest; after it
    # they let go of the CPU.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(path, options, providers=providers)


@cache
def _share_arena() -> None:
    """One arena for all sessions of the process, which grows by what is asked for and not by powers of two.

    Every input has the same shape, so that it holds what the calls at work together need, and then grows no more.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    same_as_requested = 1
    growth = {"arena_extend_strategy": same_as_requested, "initial_chunk_size_bytes": -1}
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"max_mem": 0, "max_dead_bytes_per_chunk": -1, **growth}))


def _read_card(session: ort.InferenceSession) -> dict[str, Any]:
    """The file's metadata; each entry's value is JSON."""
    try:
        metadata = session.get_modelmeta().custom_metadata_map
        missing = [key for key in _REQUIRED_ENTRIES if key not in metadata]
        if missing:
            raise ModelError(f"its metadata lacks {', '.join(missing)}, so it cannot say what it is")
        return {key: json.loads(value) for key, value in sorted(metadata.items())}
    except (ValueError, RecursionError) as error:
        raise ModelError("its metadata is not JSON") from error


def _input_side(session: ort.InferenceSession) -> int:
    """Side of the square input in pixels."""
    match [(value.name, value.type, value.shape) for value in session.get_inputs()]:
        case [(name, "tensor(float)", [None | str(), 3, int(height), int(width)])] if (
            name == INPUT_NAME and height == width
        ):
            return height
        case other:
            raise ModelError(f"its inputs are {other}, not one FP32 '{INPUT_NAME}' [N, 3, side, side]")


def _class_count(session: ort.InferenceSession, card: dict[str, Any]) -> int:
    match [(value.name, value.type, value.shape) for value in session.get_outputs()]:
        case [(name, "tensor(float)", [None | str(), int(classes)])] if (
            name == OUTPUT_NAME and classes == card["class_count"]
        ):
            return classes
        case other:
            raise ModelError(
                f"its outputs are {other}, not one FP32 '{OUTPUT_NAME}' [N, {card['class_count']}] as its metadata says"
            )
