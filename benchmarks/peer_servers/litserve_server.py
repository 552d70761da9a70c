"""A LitServe server as its documentation receives images: a `LitAPI` whose `decode_request` takes an `UploadFile`.

Environment variables: PEER_MODEL, PEER_THREADS, PEER_WORKERS, PEER_PORT.
"""

import os
from typing import Any

import litserve
from fastapi import UploadFile
from preprocess import Classifier, preprocess


class DenseNetAPI(litserve.LitAPI):
    """A worker process runs decode_request, predict and encode_response in this order."""

    def setup(self, device: str) -> None:
        self.classifier = Classifier()

    def decode_request(self, request: UploadFile) -> Any:
        return preprocess(request.file.read())

    def predict(self, batch: Any) -> dict[str, str]:
        return self.classifier.classify_input(batch)

    def encode_response(self, output: dict[str, str]) -> dict[str, str]:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(
        DenseNetAPI(),
        accelerator="cpu",
        workers_per_device=int(os.environ["PEER_WORKERS"]),
        timeout=60,
    )
    server.run(host="127.0.0.1", port=int(os.environ["PEER_PORT"]), generate_client_file=False, log_level="warning")
