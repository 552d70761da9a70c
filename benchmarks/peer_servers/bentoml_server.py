"""BentoML, as its documentation takes pictures: a service whose API method has a `PIL.Image.Image` as its input.

Settings, from the environment: PEER_MODEL, PEER_THREADS, PEER_WORKERS; host and port are BentoML's flags.
"""

import os

import bentoml
from PIL.Image import Image
from preprocess import Classifier


@bentoml.service(
    workers=int(os.environ["PEER_WORKERS"]),
    traffic={"timeout": 60},
)
class DenseNet:
    """One per worker process, which runs its method in a thread."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api
    def classify(self, image: Image) -> dict[str, str]:
        return self.classifier.classify(image)
