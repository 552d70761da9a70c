"""The handlers of the Open Inference Protocol, on the same model, scheduler and limits as `/upload`."""

import time
from collections.abc import Iterator
from typing import Any, Final, cast

import numpy as np
from starlette.responses import JSONResponse, Response

from serve import __version__
from serve.api.exchange import Exchange
from serve.api.handlers import Handler
from serve.api.pipeline import Pipeline
from serve.api.upload import Body
from serve.api.v2.messages import (
    LENGTH_HEADER,
    VERSION,
    InferenceRequest,
    Signature,
    parse_request,
    write_response,
)
from serve.api.v2.outputs import EMBEDDING, LOGITS
from serve.errors import UnknownModel
from serve.imaging.formats import Data
from serve.imaging.normalise import FloatArray
from serve.model.look import Look
from serve.model.stages import Classified, Normalised, Opened
from serve.scheduling.task import Outcome

# The protocol's two ways to name a model.
MODEL: Final = "/v2/models/{name}"
MODEL_VERSION: Final = f"{MODEL}/versions/{{version}}"
_LENGTH: Final = LENGTH_HEADER.lower().encode()


class InferenceHandlers:
    """The handlers of every route under `/v2`; they raise `RequestError`."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        model, labels = pipeline.classifier.model, pipeline.classifier.labels
        length = model.features.length if model.features else 0
        self._signature = Signature(model.name, model.input_side, labels, pipeline.limits.max_files, length)

    def health(self) -> dict[str, Handler]:
        """Returns the protocol's probes, which need no API key, by path."""
        return {"/v2/health/live": self.live, "/v2/health/ready": self.ready}

    def routes(self) -> Iterator[tuple[str, Handler, list[str]]]:
        """Yields the path, handler and methods of every other route."""
        yield "/v2", self.metadata, ["GET"]
        for model in (MODEL, MODEL_VERSION):
            yield model, self.model_metadata, ["GET"]
            yield f"{model}/ready", self.model_ready, ["GET"]
            yield f"{model}/infer", self.infer, ["POST"]

    async def metadata(self, exchange: Exchange) -> Response:
        extensions = ["binary_tensor_data", "classification"]
        return JSONResponse({"name": "densenet-server", "version": __version__, "extensions": extensions})

    async def live(self, exchange: Exchange) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, exchange: Exchange) -> Response:
        self._pipeline.lifecycle.require_ready()
        return JSONResponse({"ready": True})

    async def model_metadata(self, exchange: Exchange) -> Response:
        self._require_model(exchange)
        return JSONResponse(self._signature.metadata())

    async def model_ready(self, exchange: Exchange) -> Response:
        self._require_model(exchange)
        self._pipeline.lifecycle.require_ready()
        return JSONResponse({"name": self._signature.model, "ready": True})

    async def infer(self, exchange: Exchange) -> Response:
        self._require_model(exchange)
        pipeline = self._pipeline
        with pipeline.admit() as in_flight:
            started = time.monotonic()
            seconds = pipeline.request_timeout(exchange)
            body = await Body(exchange, in_flight, pipeline.limits.max_bytes, pipeline.uploads).read()
            read = time.monotonic()
            in_flight.body_received(read + seconds)
            length = exchange.header(_LENGTH) if _LENGTH in exchange.headers else None
            inference, outcomes = await self._infer(length, body, read + seconds)
        headers = pipeline.record_stages(exchange, read - started, outcomes)
        results = [outcome.unwrap() for outcome in outcomes]
        values = {LOGITS: np.stack([result.logits for result in results])}
        if inference.embedding:
            values[EMBEDDING] = np.stack([cast(FloatArray, result.embedding) for result in results])
        # Not on the event loop, because writing the thousand numbers of an image takes a millisecond.
        payload, json_length = await pipeline.messages.run(write_response, inference, values, self._signature)
        if json_length is None:
            return Response(payload, headers=headers, media_type="application/json")
        return Response(
            payload, headers={**headers, LENGTH_HEADER: str(json_length)}, media_type="application/octet-stream"
        )

    async def _infer(
        self, length_header: str | None, body: Data, deadline: float
    ) -> tuple[InferenceRequest, list[Outcome[Classified]]]:
        inference = await self._pipeline.messages.run_limited(parse_request, length_header, body, self._signature)
        # One bad image fails the request, because the protocol has one answer for all of them.
        look = Look(embedding=True) if inference.embedding else None
        jobs: list[Opened | Normalised] = [self._pipeline.classifier.open(each, 1, look) for each in inference.images]
        jobs += [Normalised(row, look=look) for row in inference.rows]
        return inference, await self._pipeline.scheduler.run(jobs, deadline)

    def _require_model(self, exchange: Exchange) -> None:
        name: Any = exchange.scope["path_params"]["name"]
        if name != self._signature.model:
            raise UnknownModel(f"There is no model {str(name)[:40]!r}; {self._signature.model!r} is served.")
        version: Any = exchange.scope["path_params"].get("version", VERSION)
        if version != VERSION:
            raise UnknownModel(f"There is no version {str(version)[:40]!r} of {name!r}; {VERSION!r} is served.")
