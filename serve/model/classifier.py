"""Classifies one image with a loaded model, without HTTP: from encoded bytes to a prediction."""

import time
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

from serve.config.settings import MODELS, Config
from serve.errors import EmptyFile, ModelError
from serve.imaging.decode import ImageLimits, decode, estimate_decoding_pixels, open_image
from serve.imaging.preprocess import FloatArray, Preprocessing, to_input
from serve.model.files import AUTO, find_model
from serve.model.postprocess import Label, ScoredLabel, load_class_index, top_k
from serve.model.session import Model, load_model
from serve.scheduling.pixel_budget import PixelBudget

_SIGNIFICANT_DIGITS: Final = 6  # of a probability in an answer


@dataclass(frozen=True)
class Opened:
    """An image whose header was checked, the number of classes to predict, and the seconds the check took."""

    image: Image.Image
    top_k: int
    open_seconds: float


@dataclass(frozen=True)
class Prepared:
    """An image as the model's input, FP32 `[1, 3, S, S]`, and the seconds spent by stage."""

    batch: FloatArray
    top_k: int
    seconds: dict[str, float]


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
        pixel_budget: limits the pixels decoded at once, each of which takes up to 16 bytes during decoding.
    """

    model: Model
    preprocessing: Preprocessing
    labels: tuple[Label, ...]
    limits: ImageLimits
    exif_orientation: bool
    exact_decode: bool
    pixel_budget: PixelBudget

    def open(self, data: bytes, k: int) -> Opened:
        """Checks an image by its header, without decoding it.

        Raises:
            EmptyFile: there are no bytes.
            RequestError: as from `open_image`.
        """
        if not data:
            raise EmptyFile("The file is empty; curl sends a folder as an empty file, too.")
        started = time.perf_counter()
        image = open_image(data, self.preprocessing, self.limits)
        return Opened(image, k, time.perf_counter() - started)

    def prepare(self, job: Opened | Prepared) -> Prepared:
        """Decodes and preprocesses an image on the calling thread, unless it is prepared; CPU-bound for milliseconds.

        Raises:
            RequestError: as from `decode`.
        """
        if isinstance(job, Prepared):
            return job
        reduce_for = None if self.exact_decode else self.preprocessing
        with self.pixel_budget.acquire(estimate_decoding_pixels(job.image, reduce_for)):
            started = time.perf_counter()
            rgb = decode(job.image, self.exif_orientation, reduce_for)
            decoded = time.perf_counter()
            batch = to_input(rgb, self.preprocessing, self.exact_decode)
        seconds = {"decode": job.open_seconds + decoded - started, "preprocess": time.perf_counter() - decoded}
        return Prepared(batch, job.top_k, seconds)

    def compute(self, prepared: Prepared, all_threads: bool = False) -> Classified:
        """Runs inference on the calling thread, or on all intra-op threads; CPU-bound for milliseconds."""
        started = time.perf_counter()
        logits = self.model.logits(prepared.batch, all_threads)[0]
        seconds = {**prepared.seconds, "infer": time.perf_counter() - started}
        return Classified(logits, top_k(logits, self.labels, prepared.top_k), seconds)

    def classify(self, data: bytes, k: int, all_threads: bool = False) -> Classified:
        """Runs all stages for one encoded image; raises as `open` and `prepare` do."""
        return self.compute(self.prepare(self.open(data, k)), all_threads)


def load_classifier(config: Config) -> Classifier:
    """Loads the model and labels that `config` names.

    Raises:
        StartError: a file is unusable, or the files do not fit each other.
    """
    path = find_model(config.model, config.model_variant, MODELS)
    model = load_model(path, config.thread_plan.intra_op_threads, config.providers)
    try:
        preprocessing = Preprocessing.from_card(model.card)
        if preprocessing.crop != model.input_side:
            raise ModelError(
                f"its metadata has crop={preprocessing.crop}, but its input is {model.input_side} pixels wide"
            )
    except ModelError as error:
        raise ModelError(f"model {path}: {error}; export it again with 'make export'") from error
    if config.model_variant not in (AUTO, variant := model.card["variant"]):
        raise ModelError(f"model {path}: it is {variant}, not {config.model_variant}; change --model-variant")
    return make_classifier(config, model, preprocessing)


def make_classifier(config: Config, model: Model, preprocessing: Preprocessing) -> Classifier:
    """Joins a loaded model with the labels, limits and decoding of `config`; raises `ClassIndexError`."""
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
    """Returns the JSON answer for one image: the most probable class, the top k in descending order, the model."""
    entries = [
        {
            "imagenet_id": entry.label.imagenet_id,
            "label": entry.label.name,
            "probability": float(f"{entry.probability:.{_SIGNIFICANT_DIGITS}g}"),
        }
        for entry in classified.scored
    ]
    return {**entries[0], "top_k": entries, "model": model_name}
