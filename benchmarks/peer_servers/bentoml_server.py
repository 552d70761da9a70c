"""A BentoML server as its documentation receives images: an API method with a `PIL.Image.Image` as its input.

Environment variables: PEER_MODEL, PEER_THREADS, PEER_WORKERS. Host and port are BentoML's flags.
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
    """One instance for each worker process, which runs its method in a thread."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api
    def classify(self, image: Image) -> dict[str, str]:
        return self.classifier.classify(image)
