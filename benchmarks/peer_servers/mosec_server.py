"""A mosec server as its documentation chains workers, with one stage that decodes and classifies.

Environment variables: PEER_MODEL, PEER_THREADS, PEER_WORKERS. Port and address are mosec's flags.
"""

import os

from mosec import Server, Worker
from preprocess import Classifier


class DenseNet(Worker):
    """Receives the encoded image as the body of a request."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = Classifier()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> dict[str, str]:
        return self.classifier.classify(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(DenseNet, num=int(os.environ["PEER_WORKERS"]))
    server.run()
