"""The whole path of one picture, without HTTP: encoded bytes → prediction, on one loaded model.

Errors that leave here: `StartError` while loading, `RequestError` for a picture that cannot be classified.
"""

from dataclasses import dataclass
from typing import Any

from PIL import Image

from serve.catalogue import AUTO, find_model
from serve.config import MODELS, Config
from serve.errors import EmptyFile, ModelError
from serve.model import Model, load_model
from serve.postprocess import Label, Scored, load_class_index, top_k
from serve.preprocess import Preprocessing, decode, open_image, to_input


@dataclass(frozen=True)
class Classifier:
    """A warm model with all it takes to feed it and to name its answers. Safe to use from several threads."""

    model: Model
    preprocessing: Preprocessing
    labels: tuple[Label, ...]
    max_pixels: int
    exif_orientation: bool

    def open(self, data: bytes) -> Image.Image:
        """Check a picture by its header alone; `classify` then decodes what comes back.

        Raises `EmptyFile`, `UnsupportedFormat`, `UndecodableImage` or `TooManyPixels`.
        """
        if not data:
            raise EmptyFile("The file is empty.")
        return open_image(data, self.preprocessing, self.max_pixels)

    def classify(self, image: Image.Image, k: int) -> list[Scored]:
        """Decode, preprocess and classify; the `k` most probable classes in falling order.

        CPU-bound for tens of milliseconds: never call it on an event loop. Raises `UndecodableImage`.
        """
        batch = to_input(decode(image, self.exif_orientation), self.preprocessing)
        return top_k(self.model.logits(batch)[0], self.labels, k)

    @property
    def card(self) -> dict[str, Any]:
        """The model card, for people and for `GET /model`."""
        return self.model.card


def load_classifier(config: Config) -> Classifier:
    """Load model and labels as `config` says and check that they fit; raises `StartError`."""
    path = find_model(config.model, config.model_variant, MODELS)
    model = load_model(path, config.threads)
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
    labels = load_class_index(config.class_index, model.class_count)
    return Classifier(model, preprocessing, labels, config.max_pixels, config.exif_orientation)
