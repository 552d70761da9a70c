"""The handlers of `/upload`, the model card, the probes, the metrics and the pages."""

import time
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.responses import HTMLResponse, PlainTextResponse, Response

from serve.api.exchange import Exchange
from serve.api.form import UploadedFile
from serve.api.openapi.docs_page import render_docs_page
from serve.api.openapi.document import openapi_document
from serve.api.parameters import parse_model_query, parse_upload_query, require_modest_answer
from serve.api.pipeline import Pipeline
from serve.api.responses import JSONLineResponse, upload_body
from serve.api.start_page import prefers_html, security_headers, start_page, with_address
from serve.api.upload import read_upload
from serve.errors import RequestError
from serve.model.classifier import Classified, Opened
from serve.observability.metrics import MEDIA_TYPE as METRICS_MEDIA_TYPE
from serve.scheduling.task import Outcome

Handler = Callable[[Exchange], Awaitable[Response]]

# Classes in an answer that is written on the event loop, in about a millisecond.
_QUICKLY_WRITTEN: Final = 500


class Handlers:
    """The handlers of every route except those under `/v2`; they raise `RequestError`."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._pacer = pipeline.uploads.pacer
        config, classifier = pipeline.config, pipeline.classifier
        document = openapi_document(config, classifier)
        self._openapi = bytes(JSONLineResponse(document).body)
        self._docs = render_docs_page(document)
        self._page = start_page(config, classifier)
        self._page_headers = security_headers(self._page)
        self._cards = {each: bytes(JSONLineResponse(classifier.card(each)).body) for each in (False, True)}
        self._model_name = classifier.model.name
        self._class_count = classifier.model.class_count

    async def root(self, exchange: Exchange) -> Response:
        if prefers_html(exchange.header(b"accept")):
            text = await self._pacer.run(_addressed, self._page, exchange)
            return HTMLResponse(text, headers={"Vary": "Accept", **self._page_headers})
        return PlainTextResponse("Server is Running\n", headers={"Vary": "Accept"})

    async def livez(self, exchange: Exchange) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, exchange: Exchange) -> Response:
        self._pipeline.lifecycle.require_ready()
        return PlainTextResponse("ok\n")

    async def model(self, exchange: Exchange) -> Response:
        self._pipeline.lifecycle.require_ready()
        with_labels = parse_model_query(exchange.scope["query_string"], self._class_count)
        return Response(self._cards[with_labels], media_type="application/json")

    async def metrics(self, exchange: Exchange) -> Response:
        text = await self._pacer.run(self._pipeline.metrics.render)
        return Response(text, headers={"Content-Type": METRICS_MEDIA_TYPE})

    async def openapi(self, exchange: Exchange) -> Response:
        return Response(self._openapi, media_type="application/json")

    async def docs(self, exchange: Exchange) -> Response:
        text = await self._pacer.run(_addressed, self._docs, exchange)
        return HTMLResponse(text, headers=await self._pacer.run(security_headers, text))

    async def upload(self, exchange: Exchange) -> Response:
        pipeline = self._pipeline
        with pipeline.admit() as in_flight:
            started = time.monotonic()
            query = parse_upload_query(exchange.scope["query_string"], self._class_count)
            seconds = pipeline.request_timeout(exchange)
            files = await read_upload(exchange, in_flight, pipeline.limits, pipeline.uploads)
            read = time.monotonic()
            in_flight.body_received(read + seconds)
            require_modest_answer(query.top_k, len(files))
            outcomes = await self._classify(files, query.top_k, read + seconds)
        timing = pipeline.record_stages(exchange, read - started, outcomes)
        names = None if len(files) == 1 and not query.as_list else [file.filename for file in files]
        arguments = (outcomes, names, self._model_name, query.threshold)
        if len(files) * query.top_k > _QUICKLY_WRITTEN:
            body = await pipeline.messages.run(upload_body, *arguments)
        else:
            body = upload_body(*arguments)
        return Response(body, headers=timing or None, media_type="application/json")

    async def _classify(self, files: list[UploadedFile], top_k: int, deadline: float) -> list[Outcome[Classified]]:
        """Returns one outcome per file; files of no accepted format are never queued."""
        jobs: list[Opened] = []
        refused: dict[int, RequestError] = {}
        for position, file in enumerate(files):
            try:
                jobs.append(self._pipeline.classifier.open(file.data, top_k))
            except RequestError as refusal:
                refused[position] = refusal
        outcomes = await self._pipeline.scheduler.run(jobs, deadline) if jobs else []
        for position, error in refused.items():
            outcomes.insert(position, Outcome(0.0, error=error))
        return outcomes


def _addressed(page: str, exchange: Exchange) -> str:
    """Returns a page with the address that it was requested at."""
    return with_address(page, exchange.scope["scheme"], exchange.header(b"host"))
