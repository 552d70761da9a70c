"""An MLServer runtime as its documentation shows one: base64 in an Open Inference Protocol request, strings back.

Environment variables: PEER_MODEL, PEER_THREADS. Ports and workers are MLServer's variables.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from preprocess import Classifier


class DenseNet(MLModel):
    """One instance for each worker process."""

    async def load(self) -> bool:
        self.classifier = Classifier()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        image = self.decode(payload.inputs[0], default_codec=Base64Codec)[0]
        answer = self.classifier.classify(image)
        outputs = [StringCodec.encode_output(name, [value]) for name, value in answer.items()]
        return InferenceResponse(model_name=self.name, outputs=outputs)
