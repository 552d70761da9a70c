"""Loads an ONNX model whose metadata describes its preprocessing.

Its input is 8-bit RGB `[N, S, S, 3]` or FP32 `[N, 3, S, S]`, normalised; its first output logits FP32 `[N, classes]`.
"""

import errno
import hashlib
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from serve.config.regular_file import open_regular
from serve.errors import ModelError
from serve.imaging.normalise import Batch, FloatArray
from serve.model.card import REMEDY, read_card, read_report
from serve.model.engine_choice import CPU, OPENVINO
from serve.model.engines import ENGINES, Engine, EngineOptions
from serve.model.features import ENTRY, Features
from serve.model.ort_sessions import INPUT_NAME, OUTPUT_NAME, Array, Session, run
from serve.printable import shortened

_MAX_BYTES: Final = 2**31 - 1  # protobuf's own limit
_MAX_REASON: Final = 200  # characters of a message of onnxruntime


@dataclass(frozen=True)
class Model:
    """A loaded and warmed-up model.

    Attributes:
        card: the metadata that the export wrote into the file and its report, with the file's sha256.
        blank: one image of zeros, as the model takes it.
        class_count: the number of logits per image.
        infer_seconds: seconds that the warm-up inference took on one thread.
        engine: what runs it.
        features: reads its feature maps; None if the file names none.
    """

    card: dict[str, Any]
    blank: Batch
    class_count: int
    infer_seconds: float
    engine: Engine
    features: Features | None = None

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

    @property
    def max_batch(self) -> int:
        """The most images that are computed at once."""
        return self.engine.batch_sizes[-1]

    def logits(self, batch: Batch, all_threads: bool = False) -> FloatArray:
        """Runs inference; thread-safe.

        Args:
            batch: N images, of the type that the model takes.
            all_threads: whether to use all intra-op threads instead of the calling thread alone.

        Returns:
            Logits, FP32 `[N, classes]`.
        """
        return self.engine.run(batch, all_threads)[0]

    def run(self, batch: Batch, all_threads: bool = False) -> tuple[FloatArray, Array]:
        """Runs one inference for logits and feature maps.

        Returns:
            Logits, FP32 `[N, classes]`, and maps, `[N, ...]`, which `features` reads image by image.

        Raises:
            ValueError: the model has no `features`.
        """
        if self.features is None:
            raise ValueError(f"the model {self.name} has no feature maps")
        logits, maps = self.engine.run(batch, all_threads, (OUTPUT_NAME, self.features.output))
        return logits, maps


def load_model(path: Path, options: EngineOptions, engine: str = CPU) -> Model:
    """Loads a model and runs it once, so that it is ready to use.

    Args:
        options: for the engine.
        engine: one of `ENGINES`.

    Raises:
        ModelError: the file or the engine is unusable; the message says what to do.
    """
    try:
        sha256 = _sha256(path)
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise ModelError(f"model {path}: {reason}; make it with 'make export', or choose one with --model") from error
    try:
        loaded = ENGINES[engine](path, options)
    except ModelError:
        raise
    except Exception as error:  # onnxruntime's own exceptions share no base class
        reason = shortened(str(error).rpartition(" : ")[2].replace(str(path), path.name), _MAX_REASON)
        raise ModelError(
            f"model {path} is not a model onnxruntime can load with engine={engine}: {reason}; {REMEDY}"
        ) from error
    try:
        card = read_card(loaded.session.get_modelmeta().custom_metadata_map)
        if engine == OPENVINO != card.get("engine"):
            raise ModelError(f"it is not a file for OpenVINO, but engine={engine}")
        blank = _blank_input(loaded.session, fixed_batch=engine == OPENVINO)
        class_count = _class_count(loaded.session, card)
        infer_seconds = _warm_up(loaded, blank, class_count)
        features = _features(loaded.session, card, blank)
    except ModelError as error:
        raise ModelError(f"model {path}: {error}; {REMEDY}") from error
    card |= {"sha256": sha256, "measured": read_report(path, sha256)}
    return Model(card, blank, class_count, infer_seconds, loaded, features)


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > _MAX_BYTES:
            raise OSError(errno.EFBIG, f"more than {_MAX_BYTES} bytes")
        return hashlib.file_digest(file, "sha256").hexdigest()


def _warm_up(engine: Engine, blank: Batch, class_count: int) -> float:
    """Runs first inferences, for which an engine allocates its memory.

    Returns:
        The seconds that one image took on one thread.

    Raises:
        ModelError: an inference failed, or its logits are not finite.
    """
    seconds = 0.0
    for size, all_threads in [(1, True), *((size, False) for size in reversed(engine.batch_sizes))]:
        started = time.perf_counter()
        try:
            (logits,) = engine.run(blank.repeat(size, axis=0), all_threads)
            usable = logits.shape == (size, class_count) and np.isfinite(logits).all()
        except Exception:  # onnxruntime's own exceptions share no base class
            usable = False
        if not usable:
            raise ModelError(
                f"its warm-up, an image of zeros, did not give {class_count} finite logits; check its weights and its "
                "graph"
            )
        seconds = time.perf_counter() - started
    return seconds


def _blank_input(session: Session, fixed_batch: bool) -> Batch:
    """Returns one image of zeros, of the type and size that the model says it takes.

    Args:
        fixed_batch: whether the session, not the file, has fixed N.
    """
    inputs = [(value.name, value.type, value.shape[1:]) for value in session.get_inputs()]
    dynamic = fixed_batch or all(not isinstance(value.shape[0], int) for value in session.get_inputs())
    match inputs:
        case [(name, "tensor(float)", [3, int(side), width])] if dynamic and (name, width) == (INPUT_NAME, side):
            return np.zeros((1, 3, side, side), np.float32)
        case [(name, "tensor(uint8)", [int(side), width, 3])] if dynamic and (name, width) == (INPUT_NAME, side):
            return np.zeros((1, side, side, 3), np.uint8)
        case _:
            other = [(value.name, value.type, value.shape) for value in session.get_inputs()]
            raise ModelError(
                f"its inputs are {other}, not one '{INPUT_NAME}', FP32 [N, 3, side, side] or UINT8 [N, side, side, 3] "
                "of any N; name it so, with a dynamic first dimension"
            )


def _features(session: Session, card: dict[str, Any], blank: Batch) -> Features | None:
    if (entry := card.get(ENTRY)) is None:
        return None
    # As good as noise, with which wrong weights show; the container image has no numpy.random.
    values = (np.arange(blank.size, dtype=np.uint32) * np.uint32(2654435761) >> 24).reshape(blank.shape)
    image: Batch = values.astype(np.uint8) if blank.dtype == np.uint8 else (values / 64 - 2).astype(np.float32)
    return Features.from_entry(entry, [value.name for value in session.get_outputs()], partial(run, session, image))


def _class_count(session: Session, card: dict[str, Any]) -> int:
    match [(value.name, value.type, value.shape) for value in session.get_outputs()]:
        case [(name, "tensor(float)", [None | str() | 1, int(classes)]), *_] if (
            name == OUTPUT_NAME and classes == card["class_count"]
        ):
            return classes
        case other:
            raise ModelError(
                f"its outputs are {other}, of which the first is not FP32 '{OUTPUT_NAME}' [N, {card['class_count']}] "
                "as its metadata says; name it so and leave out softmax or sigmoid, or correct class_count"
            )
