"""The handlers of `/upload`, the model card, the probes, the metrics and the pages."""

import time

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from serve.api.deadlines import while_connected
from serve.api.form import UploadedFile
from serve.api.openapi.docs_page import render_docs_page
from serve.api.openapi.document import openapi_document
from serve.api.parameters import parse_upload_query
from serve.api.pipeline import Pipeline
from serve.api.responses import JSONLineResponse, result_entry
from serve.api.start_page import prefers_html, security_headers, start_page, with_address
from serve.api.upload import read_upload
from serve.errors import RequestError
from serve.model.classifier import Classified, Opened, prediction
from serve.observability.metrics import MEDIA_TYPE as METRICS_MEDIA_TYPE
from serve.scheduling.task import Outcome


class Handlers:
    """The handlers of every route except those under `/v2`; they raise `RequestError`."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._pacer = pipeline.uploads.pacer
        config, model = pipeline.config, pipeline.classifier.model
        document = openapi_document(config, model.name, model.input_side, model.class_count)
        self._openapi = bytes(JSONLineResponse(document).body)
        self._docs = render_docs_page(document)
        self._page = start_page(config, model.name, str(model.card["variant"]), model.class_count)
        self._page_headers = security_headers(self._page)

    async def root(self, request: Request) -> Response:
        if prefers_html(request.headers.get("accept", "")):
            await self._pacer.wait_for_turn()
            text = with_address(self._page, request.scope["scheme"], request.headers.get("host", ""))
            return HTMLResponse(text, headers={"Vary": "Accept", **self._page_headers})
        return PlainTextResponse("Server is Running\n", headers={"Vary": "Accept"})

    async def livez(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        self._pipeline.lifecycle.require_ready()
        return PlainTextResponse("ok\n")

    async def model(self, request: Request) -> Response:
        self._pipeline.lifecycle.require_ready()
        return JSONLineResponse(self._pipeline.classifier.model.card)

    async def metrics(self, request: Request) -> Response:
        await self._pacer.wait_for_turn()
        return Response(self._pipeline.metrics.render(), headers={"Content-Type": METRICS_MEDIA_TYPE})

    async def openapi(self, request: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    async def docs(self, request: Request) -> Response:
        await self._pacer.wait_for_turn()
        text = with_address(self._docs, request.scope["scheme"], request.headers.get("host", ""))
        return HTMLResponse(text, headers=security_headers(text))

    async def upload(self, request: Request) -> Response:
        pipeline = self._pipeline
        async with pipeline.admit() as (in_flight, upload):
            started = time.monotonic()
            query = parse_upload_query(request.scope["query_string"], len(pipeline.classifier.labels))
            seconds = pipeline.request_timeout(request)
            files = await read_upload(request.headers, upload.limit_rate(request.stream()), pipeline.limits)
            in_flight.body_received()
            read = time.monotonic()
            outcomes = await while_connected(request.receive, self._classify(files, query.top_k, read + seconds))
            timing = pipeline.record_stages(request, read - started, outcomes)
        model_name = pipeline.classifier.model.name
        if len(files) == 1 and not query.as_list:
            return JSONLineResponse(prediction(outcomes[0].unwrap(), model_name, query.threshold), headers=timing)
        results = [
            {"filename": file.filename, **result_entry(outcome, model_name, query.threshold)}
            for file, outcome in zip(files, outcomes, strict=True)
        ]
        return JSONLineResponse({"results": results}, headers=timing)

    async def _classify(self, files: list[UploadedFile], top_k: int, deadline: float) -> list[Outcome[Classified]]:
        """Returns one outcome per file; files of no accepted format are never queued."""
        opened = [self._open(file, top_k) for file in files]
        jobs = [job for job in opened if isinstance(job, Opened)]
        computed = iter(await self._pipeline.compute(jobs, deadline) if jobs else [])
        return [next(computed) if isinstance(job, Opened) else Outcome(0.0, error=job) for job in opened]

    def _open(self, file: UploadedFile, top_k: int) -> Opened | RequestError:
        """Returns the job, or what is wrong with this file."""
        try:
            return self._pipeline.classifier.open(file.data, top_k)
        except RequestError as error:
            return error
