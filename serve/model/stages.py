"""What an image is at each stage of its path: opened or normalised, prepared, classified."""

from dataclasses import dataclass

from serve.imaging.decoders import Crop
from serve.imaging.formats import Data
from serve.imaging.normalise import Batch, FloatArray
from serve.model.look import Explanation, Look
from serve.model.postprocess import ScoredLabel


@dataclass(frozen=True)
class Opened:
    """An encoded image of an accepted format, the number of classes to predict, and what else is wanted."""

    data: Data
    format_name: str
    top_k: int
    look: Look | None = None


@dataclass(frozen=True)
class Normalised:
    """An image that a client has decoded and normalised, FP32 `[1, 3, S, S]`; no class of it can be explained."""

    batch: FloatArray
    top_k: int = 1
    look: Look | None = None


@dataclass(frozen=True)
class Prepared:
    """An image as the model takes it, and the seconds spent by stage.

    Attributes:
        look: what is wanted besides classes.
        crop: what `batch` was made of; None if a client made it.
    """

    batch: Batch
    top_k: int
    seconds: dict[str, float]
    look: Look | None = None
    crop: Crop | None = None

    @property
    def pixels(self) -> bytes:
        """The model's crop, 8-bit RGB `[S, S, 3]`; empty if a client made `batch`."""
        return self.crop.pixels if self.crop else b""


@dataclass(frozen=True)
class Classified:
    """What a model says about an image.

    Attributes:
        logits: FP32 `[classes]`.
        scored: the most probable classes, in descending order.
        seconds: spent in each stage that was run: `decode`, `preprocess`, `infer`, `look`.
        embedding: FP32 `[C]`; None if it was not wanted, like the explanation.
    """

    logits: FloatArray
    scored: list[ScoredLabel]
    seconds: dict[str, float]
    embedding: FloatArray | None = None
    explanation: Explanation | None = None
