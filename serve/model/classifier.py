"""Classifies one image with a loaded model, without HTTP: from encoded bytes to a prediction."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from serve.config.settings import Config
from serve.errors import EmptyFile, ModelError, NoFeatureMaps
from serve.imaging.decoders import Decoders
from serve.imaging.fork_server import ForkServer
from serve.imaging.formats import Data
from serve.imaging.limits import require_format
from serve.imaging.normalise import FloatArray, as_pixels, normalise, to_pixels
from serve.imaging.preprocess import Preprocessing
from serve.model.card import REMEDY
from serve.model.class_index import find_labels
from serve.model.decoders import make_decoders, start_fork_server
from serve.model.engine_choice import choose_engine
from serve.model.engines import EngineOptions
from serve.model.features import Array, Features
from serve.model.files import AUTO, model_folders
from serve.model.labels import Label
from serve.model.look import Look, look_inside
from serve.model.postprocess import Activation, top_k
from serve.model.session import Model, load_model
from serve.model.stages import Classified, Normalised, Opened, Prepared


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
        """Returns the model card, with what is in use: activation, temperature, embedding and, if asked for, labels.

        Args:
            with_labels: whether `labels` has the name of each class, and `ids` its id, where all have one.
        """
        card = {key: value for key, value in self.model.card.items() if key not in ("labels", "ids")}
        card |= {"activation": self.activation.name, "temperature": self.activation.temperature}
        measured = card.get("embedding")
        features = self.model.features
        card["embedding"] = features and {**(measured if isinstance(measured, dict) else {}), "length": features.length}
        if with_labels:
            card["labels"] = [label.name for label in self.labels]
            if all(ids := [label.imagenet_id for label in self.labels]):
                card["ids"] = ids
        return card

    def require_features(self) -> Features:
        """Returns what reads the model's feature maps; raises `NoFeatureMaps` if its file names none."""
        if self.model.features is None:
            raise NoFeatureMaps(
                f"The file of the model {self.model.name} names no feature maps, so there is nothing to look into; "
                "docs/model-files.md says which networks have them."
            )
        return self.model.features

    def open(self, data: Data, k: int, look: Look | None = None) -> Opened:
        """Recognises an image's format by its first bytes; `look`, if any, needs a model with `features`.

        Raises:
            EmptyFile: there are no bytes.
            UnsupportedFormat: the first bytes are not those of an accepted format.
        """
        if not data:
            raise EmptyFile("The file is empty; curl sends a folder as an empty file, too.")
        return Opened(data, require_format(data), k, look)

    def prepare(self, job: Opened | Normalised) -> Prepared:
        """Makes the model's input: decodes in a decoder process, and normalises for a model that takes no pixels.

        Takes milliseconds. From an image that is normalised already, a model that takes pixels gets the nearest ones.

        Raises:
            RequestError: as from `Decoders.decode`.
        """
        takes_pixels, spec = self.model.takes_pixels, self.preprocessing
        if isinstance(job, Normalised):
            return Prepared(to_pixels(job.batch, spec) if takes_pixels else job.batch, job.top_k, {}, job.look)
        crop = self.decoders.decode(job.data, job.format_name, job.look.view if job.look else 0)
        started = time.perf_counter()
        batch = as_pixels(crop.pixels, spec) if takes_pixels else normalise(crop.pixels, spec)
        resized = crop.resize_seconds + time.perf_counter() - started
        return Prepared(batch, job.top_k, {"decode": crop.decode_seconds, "preprocess": resized}, job.look, crop)

    def compute(self, prepared: Prepared, all_threads: bool = False) -> Classified:
        """Runs inference on the calling thread, or on all intra-op threads; CPU-bound for milliseconds."""
        if prepared.look:
            return self.compute_batch([prepared], all_threads)[0]
        started = time.perf_counter()
        logits = self.model.logits(prepared.batch, all_threads)[0]
        seconds = {**prepared.seconds, "infer": time.perf_counter() - started}
        return Classified(logits, top_k(logits, self.labels, prepared.top_k, self.activation), seconds)

    def compute_batch(self, batch: Sequence[Prepared], all_threads: bool = False) -> list[Classified]:
        """Runs inference on several images at once; `infer` is each one's share of the time."""
        started = time.perf_counter()
        images = np.concatenate([prepared.batch for prepared in batch])
        maps: Iterable[Array | None] = [None] * len(batch)
        if any(prepared.look for prepared in batch):
            logits, maps = self.model.run(images, all_threads)
        else:
            logits = self.model.logits(images, all_threads)
        infer = (time.perf_counter() - started) / len(batch)
        return [self._classified(*each, infer) for each in zip(batch, logits, maps, strict=True)]

    def _classified(self, prepared: Prepared, logits: FloatArray, maps: Array | None, infer: float) -> Classified:
        scored = top_k(logits, self.labels, prepared.top_k, self.activation)
        seconds, features = {**prepared.seconds, "infer": infer}, self.model.features
        if prepared.look is None or features is None or maps is None:
            return Classified(logits, scored, seconds)
        started = time.perf_counter()
        found = look_inside(prepared.look, features, maps, logits, scored[0].index, prepared.crop, self.preprocessing)
        return Classified(logits, scored, {**seconds, "look": time.perf_counter() - started}, *found)

    def classify(self, data: bytes, k: int, all_threads: bool = False, look: Look | None = None) -> Classified:
        """Runs all stages for one encoded image; raises as `open` and `prepare` do."""
        return self.compute(self.prepare(self.open(data, k, look)), all_threads)

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
