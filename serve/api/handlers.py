"""The handlers of `/upload`, the model card, the probes, the metrics and the pages."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final, cast

from starlette.responses import HTMLResponse, PlainTextResponse, Response

from serve.api.accept import prefers
from serve.api.exchange import Exchange
from serve.api.explain_query import class_names, parse_explain_query
from serve.api.form import UploadedFile
from serve.api.openapi.docs_page import render_docs_page
from serve.api.openapi.document import openapi_document
from serve.api.parameters import UploadQuery, parse_model_query, parse_upload_query, require_modest_answer
from serve.api.pipeline import Pipeline
from serve.api.responses import JSONLineResponse, explanation_body, upload_body
from serve.api.start_page import prefers_html, security_headers, start_page, with_address
from serve.api.upload import UploadLimits, read_upload
from serve.errors import RequestError
from serve.model.look import Explanation
from serve.model.stages import Classified, Opened
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
        self._labels = classifier.labels
        self._class_names = class_names(classifier.labels)
        self._class_count = classifier.model.class_count
        self._parse_upload_query = partial(parse_upload_query, classes=self._class_count)
        self._one_file = replace(pipeline.limits, max_files=1)

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
        query, files, outcomes = await self._classify(exchange, self._parse_upload_query, self._pipeline.limits)
        names = None if len(files) == 1 and not query.as_list else [file.filename for file in files]
        arguments = (outcomes, names, self._model_name, query.threshold)
        if query.look or len(files) * query.top_k > _QUICKLY_WRITTEN:
            body = await self._pipeline.messages.run(upload_body, *arguments)
        else:
            body = upload_body(*arguments)
        return Response(body, headers=exchange.timing or None, media_type="application/json")

    async def explain(self, exchange: Exchange) -> Response:
        draw = not prefers(",".join(exchange.header_list(b"accept")), "application/json", "image/png")
        parse = partial(parse_explain_query, names=self._class_names, classes=self._class_count, draw=draw)
        _, _, (outcome,) = await self._classify(exchange, parse, self._one_file)
        explanation = cast(Explanation, outcome.unwrap().explanation)
        headers = {"Vary": "Accept", **exchange.timing}
        if draw:
            return Response(explanation.png, headers=headers, media_type="image/png")
        body = await self._pipeline.messages.run(explanation_body, explanation, self._labels)
        return Response(body, headers=headers, media_type="application/json")

    async def _classify(
        self, exchange: Exchange, parse: Callable[[bytes], UploadQuery], limits: UploadLimits
    ) -> tuple[UploadQuery, list[UploadedFile], list[Outcome[Classified]]]:
        """Takes a request from its query to one outcome per file, and records the time of each stage."""
        pipeline = self._pipeline
        with pipeline.admit() as in_flight:
            started = time.monotonic()
            query = parse(exchange.scope["query_string"])
            embedding = pipeline.classifier.require_features().length if query.look else 0
            seconds = pipeline.request_timeout(exchange)
            files = await read_upload(exchange, in_flight, limits, pipeline.uploads)
            read = time.monotonic()
            in_flight.body_received(read + seconds)
            require_modest_answer(query.top_k, len(files), embedding)
            jobs, refused = self._open(files, query)
            outcomes = await pipeline.scheduler.run(jobs, read + seconds) if jobs else []
        for position, error in refused.items():
            outcomes.insert(position, Outcome(0.0, error=error))
        pipeline.record_stages(exchange, read - started, outcomes)
        return query, files, outcomes

    def _open(self, files: list[UploadedFile], query: UploadQuery) -> tuple[list[Opened], dict[int, RequestError]]:
        """Returns the files of accepted formats, and by position the errors of the others, which are never queued."""
        jobs: list[Opened] = []
        refused: dict[int, RequestError] = {}
        for position, file in enumerate(files):
            try:
                jobs.append(self._pipeline.classifier.open(file.data, query.top_k, query.look))
            except RequestError as refusal:
                refused[position] = refusal
        return jobs, refused


def _addressed(page: str, exchange: Exchange) -> str:
    """Returns a page with the address that it was requested at."""
    return with_address(page, exchange.scope["scheme"], exchange.header(b"host"))
