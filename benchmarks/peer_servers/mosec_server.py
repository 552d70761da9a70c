"""mosec, as its documentation chains workers, with one stage: what decodes a picture also classifies it.

Settings, from the environment: PEER_MODEL, PEER_THREADS, PEER_WORKERS; port and address are mosec's own flags.
"""

import os

from mosec import Server, Worker
from preprocess import Classifier


class DenseNet(Worker):
    """The body of a request is the picture itself."""

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
