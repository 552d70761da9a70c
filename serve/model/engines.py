"""Engines: what runs a model file, on which device and with how many sessions."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from serve.config.settings import Config
from serve.errors import ConfigError
from serve.imaging.normalise import Batch
from serve.imaging.other_process import threads_of
from serve.model.engine_choice import CPU, CUDA, OPENVINO
from serve.model.helper_threads import HelperThreads
from serve.model.ort_sessions import (
    INPUT_NAME,
    LOGITS,
    Array,
    Session,
    Value,
    cpu_session,
    cuda_session,
    openvino_session,
    run,
)

_GPU_BATCH: Final = 16  # images at once on a GPU, by default


@dataclass(frozen=True)
class EngineOptions:
    """How an engine divides its work.

    Attributes:
        intra_op_threads: threads that share the inference of a lone image.
        streams: threads that call `run` at the same time.
        max_batch: the most images in a call of `run`.
        cache: folder for compiled models; None for no cache.
    """

    intra_op_threads: int = 1
    streams: int = 1
    max_batch: int = 1
    cache: Path | None = None

    @classmethod
    def from_config(cls, config: Config, engine: str) -> Self:
        """Returns the options that the settings give an engine.

        Raises:
            ConfigError: the folder for compiled models cannot be written.
        """
        cache = config.engine_cache if engine == OPENVINO else None
        if cache:
            try:
                cache.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = (error.strerror or "unusable").lower()
                raise ConfigError(f"engine_cache={cache}: {reason}; choose another folder, or none") from error
            if not os.access(cache, os.W_OK):
                raise ConfigError(f"engine_cache={cache}: this folder may not be written; choose another, or none")
        plan = config.thread_plan
        max_batch = config.max_batch or (_GPU_BATCH if engine == CUDA else 1)
        return cls(plan.intra_op_threads, plan.streams, max_batch, cache)


class Engine(ABC):
    """A model file that is loaded into one engine. Thread-safe.

    Attributes:
        session: runs one image; tells what the model takes and gives.
        batch_sizes: the numbers of images that the engine runs at once; the warm-up runs each.
    """

    session: Session

    def __init__(self, options: EngineOptions) -> None:
        self.batch_sizes: Sequence[int] = sorted({1, options.max_batch})

    @abstractmethod
    def run(self, batch: Batch, all_threads: bool = False, outputs: Sequence[str] = LOGITS) -> list[Array]:
        """Returns outputs of the model for N images, `[N, ...]` each.

        Args:
            batch: N images, of the type that the model takes.
            all_threads: whether to use all intra-op threads; otherwise one thread for each caller.
            outputs: the names of those wanted; others are not copied.
        """

    def _run_in_parts(self, batch: Batch, size: int, all_threads: bool, outputs: Sequence[str]) -> list[Array]:
        parts = [self.run(batch[at : at + size], all_threads, outputs) for at in range(0, len(batch), size)]
        return [np.concatenate(values) for values in zip(*parts, strict=True)]


class CpuEngine(Engine):
    """onnxruntime's CPU provider; takes batches of any size.

    It has two sessions, because a session's number of threads is fixed. They take twice 20 MB, as onnxruntime's Python
    API cannot share packed weights, but one session would be slow either under load or for a single image.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        super().__init__(options)
        before = threads_of(os.getpid())
        self.session = cpu_session(path, 1)
        threads = options.intra_op_threads
        self._latency_session = self.session if threads == 1 else cpu_session(path, threads)
        self._helpers = HelperThreads(before)

    def run(self, batch: Batch, all_threads: bool = False, outputs: Sequence[str] = LOGITS) -> list[Array]:
        if not all_threads:
            return run(self.session, batch, outputs)
        self._helpers.keep_off()
        return run(self._latency_session, batch, outputs)


class OpenVinoEngine(Engine):
    """OpenVINO through its plug-in for onnxruntime, on a file of QuantizeLinear and DequantizeLinear pairs.

    Its sessions have static shapes, because with a dynamic batch the same file takes 1.6 times as long. One has as
    many streams of one thread as there are callers. A lone image that may use several threads has a session of its own,
    of one stream: a thread of OpenVINO takes 0.8 of the time of two threads of the `cpu` engine, two take 0.6. It costs
    70 MB and, as the sessions are made at the same time, little of the start.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        super().__init__(options)
        streams, threads, self._max_batch = options.streams, options.intra_op_threads, options.max_batch
        one_by_one, lone, in_batches = (1, streams, streams), (1, 1, threads), (self._max_batch, streams, streams)
        wanted = dict.fromkeys([one_by_one, lone if threads > 1 else one_by_one, in_batches])
        before = threads_of(os.getpid())

        def make(shape: tuple[int, int, int]) -> Session:
            return openvino_session(path, *shape, options.cache)

        with ThreadPoolExecutor() as pool:
            sessions = dict(zip(wanted, pool.map(make, wanted), strict=True))
        self.session, self._batch_session = sessions[one_by_one], sessions[in_batches]
        self._latency_session = sessions.get(lone, self.session)
        self._helpers = HelperThreads(before)

    def run(self, batch: Batch, all_threads: bool = False, outputs: Sequence[str] = LOGITS) -> list[Array]:
        """Takes any number of images: those that fill no batch run one by one."""
        if len(batch) == 1 and all_threads and self._latency_session is not self.session:
            self._helpers.keep_off()
            return run(self._latency_session, batch, outputs)
        self._helpers.let_go()  # some run the other sessions
        if len(batch) == 1:
            return run(self.session, batch, outputs)
        if len(batch) == self._max_batch:
            return run(self._batch_session, batch, outputs)
        return self._run_in_parts(batch, self._max_batch if len(batch) > self._max_batch else 1, all_threads, outputs)


class CudaEngine(Engine):
    """onnxruntime's CUDA provider, in batches that are padded to a power of two or `max_batch`.

    A new shape makes cuDNN choose its algorithms anew, so only these few sizes are run. Input stays in one place on the
    device for each size, and calls take turns, because a GPU runs one batch at a time.

    Args:
        device: onnxruntime's name of the device that inputs are copied to.
    """

    def __init__(self, path: Path, options: EngineOptions, device: str = "cuda") -> None:
        super().__init__(options)
        powers = [2**power for power in range(options.max_batch.bit_length())]
        self.batch_sizes = sorted({*powers, options.max_batch})
        self.session = cuda_session(path)
        self._device = device
        self._lock = threading.Lock()
        # Size and outputs → the binding, and its input on the device.
        self._bound: dict[tuple[int, tuple[str, ...]], tuple[Any, Any]] = {}

    def run(self, batch: Batch, all_threads: bool = False, outputs: Sequence[str] = LOGITS) -> list[Array]:
        """Takes any number of images, in several batches if they are more than `max_batch`."""
        largest = self.batch_sizes[-1]
        if len(batch) > largest:
            return self._run_in_parts(batch, largest, all_threads, outputs)
        size = next(size for size in self.batch_sizes if size >= len(batch))
        padded = np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), batch.dtype)])
        with self._lock:
            key = size, tuple(outputs)
            if key not in self._bound:
                self._bound[key] = self._bind(padded, outputs)
            binding, image = self._bound[key]
            image.update_inplace(padded)
            self.session.run_with_iobinding(binding)
            values: list[Array] = binding.copy_outputs_to_cpu()
        return [value[: len(batch)] for value in values]

    def _bind(self, batch: Batch, outputs: Sequence[str]) -> tuple[Any, Any]:
        image = Value.ortvalue_from_numpy(batch, self._device, 0)
        binding = self.session.io_binding()
        binding.bind_ortvalue_input(INPUT_NAME, image)
        for name in outputs:
            binding.bind_output(name, self._device)
        return binding, image


ENGINES: Final[dict[str, Callable[[Path, EngineOptions], Engine]]] = {
    CPU: CpuEngine,
    OPENVINO: OpenVinoEngine,
    CUDA: CudaEngine,
}
