"""The whole path of one picture, without HTTP: encoded bytes → prediction, on one loaded model.

Errors that leave here: `StartError` while loading, `RequestError` for a picture that cannot be classified.
"""

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from serve.config.settings import MODELS, Config
from serve.errors import EmptyFile, ModelError
from serve.imaging.decode import ImageLimits, decode, decoding_pixels, open_image
from serve.imaging.preprocess import Preprocessing, to_input
from serve.model.files import AUTO, find_model
from serve.model.postprocess import Label, Scored, load_class_index, top_k
from serve.model.session import Model, load_model
from serve.scheduling.pixel_budget import PixelBudget

_SIGNIFICANT_DIGITS: Final = 6  # of a probability in an answer


@dataclass(frozen=True)
class Job:
    """One picture, checked by its header in so many seconds, and how many classes to name."""

    image: Image.Image
    top_k: int
    open_seconds: float


@dataclass(frozen=True)
class Prepared:
    """One picture as the model's input, FP32 `[1, 3, S, S]`, and the seconds that took by stage."""

    batch: npt.NDArray[np.float32]
    top_k: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Classified:
    """Logits FP32 `[classes]`, the most probable classes in falling order, and the seconds of `decode`, `preprocess`
    and `infer`, as far as there were any."""

    logits: npt.NDArray[np.float32]
    scored: list[Scored]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Classifier:
    """A warm model with all it takes to feed it and to name its answers. Safe to use from several threads.

    room: pixels that may be decoded at once, because each takes up to 15 bytes while it is.
    """

    model: Model
    preprocessing: Preprocessing
    labels: tuple[Label, ...]
    limits: ImageLimits
    exif_orientation: bool
    exact_decode: bool
    room: PixelBudget

    def open(self, data: bytes, k: int) -> Job:
        """Check a picture by its header alone; `prepare` then decodes it.

        Raises `EmptyFile`, and what `open_image` raises.
        """
        if not data:
            raise EmptyFile("The file is empty; curl sends a folder so, too.")
        started = time.perf_counter()
        image = open_image(data, self.preprocessing, self.limits)
        return Job(image, k, time.perf_counter() - started)

    def prepare(self, job: Job | Prepared) -> Prepared:
        """Decode and preprocess what is not so already, on the calling thread; CPU-bound for milliseconds.

        Raises what `decode` raises.
        """
        if isinstance(job, Prepared):
            return job
        reduce_for = None if self.exact_decode else self.preprocessing
        with self.room.acquire(decoding_pixels(job.image, reduce_for)):
            started = time.perf_counter()
            rgb = decode(job.image, self.exif_orientation, reduce_for)
            decoded = time.perf_counter()
            batch = to_input(rgb, self.preprocessing, self.exact_decode)
        return Prepared(
            batch,
            job.top_k,
            {"decode": job.open_seconds + decoded - started, "preprocess": time.perf_counter() - decoded},
        )

    def compute(self, prepared: Prepared, wide: bool = False) -> Classified:
        """Classify what was prepared, on the calling thread or, `wide`, on all of them; CPU-bound for milliseconds."""
        started = time.perf_counter()
        logits = self.model.logits(prepared.batch, wide)[0]
        seconds = {**prepared.seconds, "infer": time.perf_counter() - started}
        return Classified(logits, top_k(logits, self.labels, prepared.top_k), seconds)

    def classify(self, data: bytes, k: int, wide: bool = False) -> Classified:
        """The whole path of one encoded picture, for who has no scheduler; raises what `open` and `prepare` raise."""
        return self.compute(self.prepare(self.open(data, k)), wide)

    @property
    def card(self) -> dict[str, Any]:
        """The model card, for people and for `GET /model`."""
        return self.model.card


def load_classifier(config: Config) -> Classifier:
    """Load model and labels as `config` says and check that they fit; raises `StartError`."""
    path = find_model(config.model, config.model_variant, MODELS)
    model = load_model(path, config.thread_plan.intra_op_threads, config.providers)
    try:
        preprocessing = Preprocessing.from_card(model.card)
        if preprocessing.crop != model.input_side:
            raise ModelError(
                f"its metadata has crop={preprocessing.crop}, but its input is {model.input_side} pixels wide"
            )
        if config.model_variant not in (AUTO, model.card["variant"]):
            raise ModelError(f"it is {model.card['variant']}, not {config.model_variant}")
    except ModelError as error:
        raise ModelError(f"model {path}: {error}; make it anew with 'make export'") from error
    return classifier_of(config, model, preprocessing)


def classifier_of(config: Config, model: Model, preprocessing: Preprocessing) -> Classifier:
    """A loaded model with its labels, limited and decoding as `config` says; raises `StartError`."""
    return Classifier(
        model,
        preprocessing,
        load_class_index(config.class_index, model.class_count),
        ImageLimits(config.max_pixels, config.max_frames, config.max_decode_ms / 1000),
        config.exif_orientation,
        config.decode == "exact",
        PixelBudget(config.max_pixels),
    )


def prediction(classified: Classified, model_name: str) -> dict[str, Any]:
    """One picture's answer: its most probable class, the top k in falling order, and the model that says so."""
    entries = [
        {
            "imagenet_id": entry.label.imagenet_id,
            "label": entry.label.name,
            "probability": float(f"{entry.probability:.{_SIGNIFICANT_DIGITS}g}"),
        }
        for entry in classified.scored
    ]
    return {**entries[0], "top_k": entries, "model": model_name}
