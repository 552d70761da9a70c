"""Classifies one image with a loaded model, without HTTP: from encoded bytes to a prediction."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from serve.config.settings import Config
from serve.errors import EmptyFile, ModelError
from serve.imaging.decoders import Decoders
from serve.imaging.fork_server import ForkServer
from serve.imaging.formats import Data
from serve.imaging.limits import require_format
from serve.imaging.normalise import Batch, FloatArray, as_pixels, normalise, to_pixels
from serve.imaging.preprocess import Preprocessing
from serve.model.card import REMEDY
from serve.model.class_index import find_labels
from serve.model.decoders import make_decoders, start_fork_server
from serve.model.engine_choice import choose_engine
from serve.model.engines import EngineOptions
from serve.model.files import AUTO, model_folders
from serve.model.labels import Label
from serve.model.postprocess import Activation, ScoredLabel, top_k
from serve.model.session import Model, load_model

_SIGNIFICANT_DIGITS: Final = 6  # of a probability in an answer


@dataclass(frozen=True)
class Opened:
    """An encoded image of an accepted format, and the number of classes to predict."""

    data: Data
    format_name: str
    top_k: int


@dataclass(frozen=True)
class Normalised:
    """An image that a client has decoded and normalised, FP32 `[1, 3, S, S]`."""

    batch: FloatArray
    top_k: int = 1


@dataclass(frozen=True)
class Prepared:
    """An image as the model takes it, and the seconds spent by stage.

    Attributes:
        pixels: the crop that `batch` was made of, 8-bit RGB `[S, S, 3]`; empty if a client made it.
    """

    batch: Batch
    top_k: int
    seconds: dict[str, float]
    pixels: bytes = b""


@dataclass(frozen=True)
class Classified:
    """Logits FP32 `[classes]`, the most probable classes in descending order, and the seconds spent in each stage that
    was run: `decode`, `preprocess`, `infer`."""

    logits: FloatArray
    scored: list[ScoredLabel]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Classifier:
    """A warm model with its preprocessing and labels; thread-safe.

    Attributes:
        labels: of all classes, in the order of the logits.
        decoders: decode the images; closed by `close`.
        fork_server: forks the decoders, and ends with them; None if there is none, or it belongs to another.
        activation: how logits become probabilities.
    """

    model: Model
    preprocessing: Preprocessing
    labels: tuple[Label, ...]
    decoders: Decoders
    fork_server: ForkServer | None = None
    activation: Activation = field(default_factory=Activation)

    def card(self, with_labels: bool) -> dict[str, Any]:
        """Returns the model card, with what is in use: the activation, the temperature and, if asked for, the labels.

        Args:
            with_labels: whether `labels` has the name of each class, and `ids` its id, where all have one.
        """
        card = {key: value for key, value in self.model.card.items() if key not in ("labels", "ids")}
        card |= {"activation": self.activation.name, "temperature": self.activation.temperature}
        if with_labels:
            card["labels"] = [label.name for label in self.labels]
            if all(ids := [label.imagenet_id for label in self.labels]):
                card["ids"] = ids
        return card

    def open(self, data: Data, k: int) -> Opened:
        """Recognises an image's format by its first bytes.

        Raises:
            EmptyFile: there are no bytes.
            UnsupportedFormat: the first bytes are not those of an accepted format.
        """
        if not data:
            raise EmptyFile("The file is empty; curl sends a folder as an empty file, too.")
        return Opened(data, require_format(data), k)

    def prepare(self, job: Opened | Normalised) -> Prepared:
        """Makes the model's input: decodes in a decoder process, and normalises for a model that takes no pixels.

        Takes milliseconds. From an image that is normalised already, a model that takes pixels gets the nearest ones.

        Raises:
            RequestError: as from `Decoders.decode`.
        """
        takes_pixels, spec = self.model.takes_pixels, self.preprocessing
        if isinstance(job, Normalised):
            return Prepared(to_pixels(job.batch, spec) if takes_pixels else job.batch, job.top_k, {})
        crop = self.decoders.decode(job.data, job.format_name)
        started = time.perf_counter()
        batch = as_pixels(crop.pixels, spec) if takes_pixels else normalise(crop.pixels, spec)
        resized = crop.resize_seconds + time.perf_counter() - started
        return Prepared(batch, job.top_k, {"decode": crop.decode_seconds, "preprocess": resized}, crop.pixels)

    def compute(self, prepared: Prepared, all_threads: bool = False) -> Classified:
        """Runs inference on the calling thread, or on all intra-op threads; CPU-bound for milliseconds."""
        started = time.perf_counter()
        logits = self.model.logits(prepared.batch, all_threads)[0]
        seconds = {**prepared.seconds, "infer": time.perf_counter() - started}
        return Classified(logits, top_k(logits, self.labels, prepared.top_k, self.activation), seconds)

    def compute_batch(self, batch: Sequence[Prepared], all_threads: bool = False) -> list[Classified]:
        """Runs inference on several images at once; `infer` is then the time that all of them took."""
        started = time.perf_counter()
        logits = self.model.logits(np.concatenate([prepared.batch for prepared in batch]), all_threads)
        infer = {"infer": time.perf_counter() - started}
        return [
            Classified(row, top_k(row, self.labels, prepared.top_k, self.activation), {**prepared.seconds, **infer})
            for row, prepared in zip(logits, batch, strict=True)
        ]

    def classify(self, data: bytes, k: int, all_threads: bool = False) -> Classified:
        """Runs all stages for one encoded image; raises as `open` and `prepare` do."""
        return self.compute(self.prepare(self.open(data, k)), all_threads)

    def close(self) -> None:
        """Ends the decoders."""
        self.decoders.close()
        if self.fork_server:
            self.fork_server.close()


def load_classifier(config: Config) -> Classifier:
    """Loads the model and labels that `config` names.

    Raises:
        StartError: a file is unusable, or the files do not fit each other.
    """
    folders = model_folders(config.models, config.model)
    choice = choose_engine(config.engine, config.model, config.model_variant, folders)
    fork_server = start_fork_server(config)  # it starts while the model is loaded
    try:
        model = load_model(choice.path, EngineOptions.from_config(config, choice.engine), choice.engine)
        variant = model.card["variant"]
        if config.model_variant not in (AUTO, variant):
            raise ModelError(
                f"model {choice.path}: it is {variant}, not {config.model_variant}; change --model-variant"
            )
        model.card.update(engine=choice.engine, engine_reason=choice.reason)
        with _errors_naming(choice.path):
            made = make_classifier(config, model, _preprocessing_of(model), fork_server)
        return replace(made, fork_server=fork_server)
    except BaseException:
        if fork_server:
            fork_server.close()
        raise


@contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    """Adds the file and what to do to each `ModelError`."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"model {path}: {error}; {REMEDY}") from error


def _preprocessing_of(model: Model) -> Preprocessing:
    preprocessing = Preprocessing.from_card(model.card)
    if preprocessing.crop != model.input_side:
        raise ModelError(
            f"its metadata has crop={preprocessing.crop}, but its input is {model.input_side} pixels wide; set crop to "
            "that"
        )
    return preprocessing


def make_classifier(
    config: Config, model: Model, preprocessing: Preprocessing, fork_server: ForkServer | None
) -> Classifier:
    """Joins a loaded model with the labels and decoders of `config`; the caller closes the fork server.

    Raises:
        StartError: the labels or the activation do not fit, or no decoder can be started.
    """
    labels = find_labels(config.class_index, model.card, model.class_count)
    activation = Activation.from_card(model.card)
    decoders = make_decoders(config, preprocessing, fork_server)
    return Classifier(model, preprocessing, labels, decoders, activation=activation)


def prediction(classified: Classified, model_name: str, threshold: float = 0.0) -> dict[str, Any]:
    """Returns the JSON answer for one image: the most probable class, the top k in descending order, the model.

    Classes without an id have no `imagenet_id`.

    Args:
        threshold: entries of the top k with a lower probability, as written, are left out.
    """
    entries = [_entry(scored) for scored in classified.scored]
    best = {key: value for key, value in entries[0].items() if key != "index"}
    kept = [entry for entry in entries if entry["probability"] >= threshold]
    return {**best, "top_k": kept, "model": model_name}


def _entry(scored: ScoredLabel) -> dict[str, Any]:
    identifier, name = scored.label.imagenet_id, scored.label.name
    probability = float(f"{scored.probability:.{_SIGNIFICANT_DIGITS}g}")
    if identifier is None:
        return {"index": scored.index, "label": name, "probability": probability}
    return {"index": scored.index, "imagenet_id": identifier, "label": name, "probability": probability}
