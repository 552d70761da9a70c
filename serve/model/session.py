"""Runs an ONNX model whose metadata describes its preprocessing; the only module that imports onnxruntime.

Its input is 8-bit RGB `[N, S, S, 3]` or FP32 `[N, 3, S, S]`, normalised; its output logits FP32 `[N, classes]`.
"""

import errno
import hashlib
import os
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from serve.config.regular_file import open_regular
from serve.errors import ModelError
from serve.imaging.normalise import Batch, FloatArray
from serve.model.card import REMEDY, read_card, read_report
from serve.printable import shortened

# onnxruntime's Linux wheel sends usage statistics unless this is set before its first import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

INPUT_NAME: Final = "input"
OUTPUT_NAME: Final = "logits"
_MAX_BYTES: Final = 2**31 - 1  # protobuf's own limit
_MAX_REASON: Final = 200  # characters of a message of onnxruntime
_CPU: Final = "cpu"
_CUDA_PROVIDERS: Final = {"cuda", "tensorrt"}
_FATAL: Final = 4  # onnxruntime's log severity; errors are reported as ModelError instead


@dataclass(frozen=True)
class Model:
    """A loaded and warmed-up model.

    Attributes:
        card: the metadata that the export wrote into the file and its report, with the file's sha256.
        blank: one image of zeros, as the model takes it.
        class_count: the number of logits per image.
        infer_seconds: seconds that the warm-up inference took on one thread.
    """

    card: dict[str, Any]
    blank: Batch
    class_count: int
    infer_seconds: float
    _throughput_session: ort.InferenceSession
    _latency_session: ort.InferenceSession

    @property
    def name(self) -> str:
        """The architecture's name, such as `densenet121`."""
        return str(self.card["name"])

    @property
    def takes_pixels(self) -> bool:
        """Whether the input is 8-bit RGB `[N, S, S, 3]`; otherwise it is FP32 `[N, 3, S, S]`, normalised."""
        return self.blank.dtype == np.uint8

    @property
    def input_side(self) -> int:
        """S, in pixels."""
        return int(self.blank.shape[2])

    def logits(self, batch: Batch, all_threads: bool = False) -> FloatArray:
        """Runs inference; thread-safe.

        Args:
            batch: N images, of the type that the model takes.
            all_threads: whether to use all intra-op threads instead of the calling thread alone.

        Returns:
            Logits, FP32 `[N, classes]`.
        """
        return _run(self._latency_session if all_threads else self._throughput_session, batch)


def load_model(path: Path, intra_op_threads: int, providers: tuple[str, ...] = (_CPU,)) -> Model:
    """Loads a model and runs it once, so that it is ready to use.

    Args:
        intra_op_threads: threads that share one inference, at least 1.
        providers: execution providers by their short names, in order of preference.

    Raises:
        ModelError: the file or a provider is unusable; the message says what to do.
    """
    chosen = _provider_names(providers)
    if _CUDA_PROVIDERS & set(providers):
        with redirect_stdout(sys.stderr):  # it prints which libraries are missing
            ort.preload_dlls()  # from where pip installs CUDA and cuDNN, which the loader does not search
    try:
        sha256 = _sha256(path)
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise ModelError(f"model {path}: {reason}; make it with 'make export', or choose one with --model") from error
    try:
        # Two sessions, because a session's number of threads is fixed. They take twice 20 MB, as onnxruntime's Python
        # API cannot share packed weights, but one session would be slow either under load or for a single image.
        single = _create_session(path, 1, chosen)
        multi = single if intra_op_threads == 1 else _create_session(path, intra_op_threads, chosen)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        reason = shortened(str(error).rpartition(" : ")[2].replace(str(path), path.name), _MAX_REASON)
        raise ModelError(f"model {path} is not a model onnxruntime can load: {reason}; {REMEDY}") from error
    missing = [name for name in chosen if name not in single.get_providers()]
    if missing:  # onnxruntime falls back to others, and reports it only in its own log
        raise ModelError(
            f"providers={','.join(providers)}: {missing[0]} does not start here; its libraries or its device "
            "are missing (see docs/operating.md)"
        )
    try:
        card = read_card(single.get_modelmeta().custom_metadata_map)
        blank = _blank_input(single)
        class_count = _class_count(single, card)
    except ModelError as error:
        raise ModelError(f"model {path}: {error}; {REMEDY}") from error
    infer_seconds = 0.0
    for session in dict.fromkeys((multi, single)):
        started = time.perf_counter()
        if not _warm_up(session, blank, class_count):
            raise ModelError(
                f"model {path}: its warm-up, an image of zeros, did not give {class_count} finite logits; check its "
                f"weights and its graph; {REMEDY}"
            )
        infer_seconds = time.perf_counter() - started
    card |= {"sha256": sha256, "measured": read_report(path, sha256)}
    return Model(card, blank, class_count, infer_seconds, single, multi)


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > _MAX_BYTES:
            raise OSError(errno.EFBIG, f"more than {_MAX_BYTES} bytes")
        return hashlib.file_digest(file, "sha256").hexdigest()


def _warm_up(session: ort.InferenceSession, image: Batch, class_count: int) -> bool:
    """Runs a first inference, for which onnxruntime allocates its memory; returns whether the logits are finite."""
    try:
        logits = _run(session, image)
    except Exception:  # onnxruntime's own exceptions share no base class
        return False
    return logits.shape == (1, class_count) and bool(np.isfinite(logits).all())


def _run(session: ort.InferenceSession, batch: Batch) -> FloatArray:
    outputs: list[FloatArray] = session.run([OUTPUT_NAME], {INPUT_NAME: batch})
    return outputs[0]


def _provider_names(providers: tuple[str, ...]) -> list[str]:
    """Returns onnxruntime's names of these execution providers."""
    offered = {name.removesuffix("ExecutionProvider").lower(): name for name in ort.get_available_providers()}
    missing = [name for name in providers if name not in offered]
    if missing:
        raise ModelError(
            f"providers={','.join(providers)}: the installed onnxruntime {ort.__version__} has no "
            f"{', '.join(missing)}; it offers {', '.join(offered)} (for GPUs see docs/operating.md)"
        )
    return [offered[name] for name in providers]


def _create_session(path: Path, intra_op_threads: int, providers: list[str]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Threads spin while they wait for each other during an inference, which is fastest, and sleep after it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
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


def _blank_input(session: ort.InferenceSession) -> Batch:
    """Returns one image of zeros, of the type and size that the model says it takes."""
    match [(value.name, value.type, value.shape) for value in session.get_inputs()]:
        case [(name, "tensor(float)", [None | str(), 3, int(side), width])] if (name, width) == (INPUT_NAME, side):
            return np.zeros((1, 3, side, side), np.float32)
        case [(name, "tensor(uint8)", [None | str(), int(side), width, 3])] if (name, width) == (INPUT_NAME, side):
            return np.zeros((1, side, side, 3), np.uint8)
        case other:
            raise ModelError(
                f"its inputs are {other}, not one '{INPUT_NAME}', FP32 [N, 3, side, side] or UINT8 [N, side, side, 3] "
                "of any N; name it so, with a dynamic first dimension"
            )


def _class_count(session: ort.InferenceSession, card: dict[str, Any]) -> int:
    match [(value.name, value.type, value.shape) for value in session.get_outputs()]:
        case [(name, "tensor(float)", [None | str(), int(classes)])] if (
            name == OUTPUT_NAME and classes == card["class_count"]
        ):
            return classes
        case other:
            raise ModelError(
                f"its outputs are {other}, not one FP32 '{OUTPUT_NAME}' [N, {card['class_count']}] as its metadata "
                f"says; name it so and leave out softmax or sigmoid, or correct class_count"
            )
