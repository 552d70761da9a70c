"""Account for the event loop's time of one upload, layer by layer.

    python benchmarks/hot_path.py

The protocol, the application and the scheduler run in this process on a fake transport, with a stub in place of
decoding and inference, so neither a model nor a socket is needed. A layer's cost is the difference between two
applications, composed from the server's own parts, with and without it; they are measured in turn. Times are CPU times:
of the event loop's thread, and of the whole process, so that nothing is merely moved to another thread. Calls are
Python functions entered or resumed on the event loop's thread. The last line is the verdict; the status is 1 if it
exceeds a bound, or with `--calls` if the number of calls does.
"""

import asyncio
import gc
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from types import FrameType
from typing import Any, Final, cast

if not __package__:  # started by its path
    import_module("harness.launch").start("runtime")

import numpy as np
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.harness.machine import ROOT
from benchmarks.reporting.records import PrintedResult, add_output
from serve.api.app import HandlerRoute, create_app
from serve.api.boundary import Boundary, OriginGuard
from serve.api.exchange import Exchange
from serve.api.handlers import Handler
from serve.api.responses import JSONLineResponse
from serve.api.upload import UploadLimits, read_upload
from serve.config.cpus import cpu_budget
from serve.config.hosts import AllowedHosts
from serve.config.settings import Config
from serve.imaging.decoders import Crop, OnSlow
from serve.imaging.malloc import restart_with_huge_pages, tune_malloc
from serve.imaging.preprocess import Preprocessing
from serve.model.class_index import load_class_index
from serve.model.classifier import Classifier
from serve.model.session import Model
from serve.observability.error_stream import ErrorStream
from serve.observability.log import set_up_logging
from serve.observability.metrics import Metrics
from serve.printable import ArgumentParser
from serve.scheduling.in_flight import InFlightRequest
from serve.scheduling.lifecycle import Lifecycle
from serve.scheduling.upload_budget import UploadBudget
from serve.server.http_server import http_server

# Milliseconds of the event loop's thread, and calls, for each upload.
BOUNDS: Final = {"form": 0.40, "raw": 0.28}
MAX_CALLS: Final = 450
IMAGE_BYTES: Final = 112 * 1024
_READ_BYTES: Final = 64 * 1024  # what the server reads from a socket at once
_BOUNDARY: Final = b"------------------------KQ0hbyG5gzX8hEyOpHrF2x"  # as long as curl's
_CARD: Final = {
    "name": "stub", "variant": "int8", "class_count": 1000, "resize": 256, "crop": 224, "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    "engine": "stub", "engine_reason": "a stub",
}  # fmt: skip


@dataclass
class StubModel:
    """A model that answers at once, always the same."""

    card: dict[str, Any] = field(default_factory=lambda: dict(_CARD))
    name: str = "stub"
    input_side: int = 224
    takes_pixels: bool = True
    class_count: int = 1000
    infer_seconds: float = 0.01
    max_batch: int = 1
    features: None = None

    def __post_init__(self) -> None:
        self._logits = np.random.default_rng(0).normal(size=(1, self.class_count)).astype(np.float32)

    def logits(self, batch: object, all_threads: bool = False) -> Any:
        """The same logits for any input."""
        return self._logits


class StubDecoders:
    """Decoders that return the same crop at once."""

    state = "sealed"
    crop: Crop = Crop(bytes(224 * 224 * 3), 0.003, 0.001, (640, 480))

    def __init__(self) -> None:
        self.on_death: Callable[[str], None] = lambda _: None
        self.on_slow: OnSlow = lambda _: False
        self.is_alone: Callable[[], bool] = lambda: True

    def decode(self, data: object, format_name: str, view: int = 0) -> Crop:
        """The same crop for any image."""
        return self.crop

    def close(self) -> None:
        """Do nothing."""


class NoMetrics(Metrics):
    """Metrics that count nothing on the way of an upload."""

    def request_started(self) -> None:
        """Do nothing."""

    def request_finished(self, *_: object) -> None:
        """Do nothing."""

    def observe_stages(self, *_: object) -> None:
        """Do nothing."""


class FakeTransport(asyncio.Transport):
    """A transport that tells when a response has been written."""

    def __init__(self) -> None:
        super().__init__()
        self.response = b""
        self.on_response: Callable[[], None] = lambda: None

    def write(self, data: Any) -> None:
        """Take a whole response."""
        self.response = data
        self.on_response()

    def is_closing(self) -> bool:
        """Tell that it is open."""
        return False

    def get_write_buffer_size(self) -> int:
        """Tell that everything was read."""
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Tell addresses, as a socket would."""
        return {"peername": ("127.0.0.1", 40000), "sockname": ("127.0.0.1", 5000)}.get(name, default)

    def close(self) -> None:
        """Do nothing."""

    pause_reading = resume_reading = close


class Uploads:
    """One kept-alive connection to an application, over which one request is sent again and again."""

    def __init__(self, protocol: asyncio.Protocol, transport: FakeTransport, request: bytes) -> None:
        self._protocol = protocol
        self._transport = transport
        self._parts = [request[at : at + _READ_BYTES] for at in range(0, len(request), _READ_BYTES)]
        self._loop = asyncio.get_running_loop()

    async def send(self, count: int) -> None:
        """Send the request `count` times, each once the one before is answered."""
        left, done = count, self._loop.create_future()

        def sent() -> None:
            nonlocal left
            left -= 1
            if left:
                self._loop.call_soon(self._feed, 0)
            else:
                done.set_result(None)

        self._transport.on_response = sent
        self._loop.call_soon(self._feed, 0)
        await done
        if b" 200 " not in self._transport.response[:16]:
            raise SystemExit(f"hot_path: not answered with 200: {self._transport.response[:200]!r}")

    def _feed(self, part: int) -> None:
        self._protocol.data_received(self._parts[part])
        if part + 1 < len(self._parts):
            self._loop.call_soon(self._feed, part + 1)


def requests() -> dict[str, bytes]:
    """Return an upload of `IMAGE_BYTES` as curl sends it, as a form and raw."""
    image = b"\xff\xd8\xff\xe0" + np.random.default_rng(0).bytes(IMAGE_BYTES - 4)
    part = b'Content-Disposition: form-data; name="file"; filename="cat.jpg"\r\nContent-Type: image/jpeg'
    form = b"--%s\r\n%s\r\n\r\n%s\r\n--%s--\r\n" % (_BOUNDARY, part, image, _BOUNDARY)
    head = b"POST /upload HTTP/1.1\r\nHost: 127.0.0.1:5000\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n"
    bodies = {"form": (b"multipart/form-data; boundary=" + _BOUNDARY, form), "raw": (b"image/jpeg", image)}
    return {
        name: head + b"Content-Length: %d\r\nContent-Type: %s\r\n\r\n%s" % (len(body), media_type, body)
        for name, (media_type, body) in bodies.items()
    }


async def bare_application(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body and answer, without any layer of the server."""
    more = True
    while more:
        more = (await receive())["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"500")]})
    await send({"type": "http.response.body", "body": b"x" * 500})


class Bench:
    """Composes applications and measures uploads to them."""

    def __init__(self) -> None:
        self.config = Config(port=0)
        labels = load_class_index(ROOT / "imagenet_class_index.json", 1000)
        model, spec = cast(Model, StubModel()), Preprocessing.from_card(_CARD)
        self.classifier = Classifier(model, spec, labels, StubDecoders())
        self.lifecycle = Lifecycle(self.config.grace_seconds)
        self.metrics = Metrics({"model": "stub"})
        self.metrics.declare_routes(["/upload"])
        self._budget = UploadBudget(self.config.max_upload_bytes, self.config.body_timeout_ms / 1000)
        self._limits = UploadLimits(self.config.max_request_bytes, self.config.max_files)

    def applications(self) -> dict[str, ASGIApp]:
        """Return applications by what they have, each with one layer more than the one before."""
        return {
            "protocol": bare_application,
            "boundary, route, answer": self._with_handler(self._drain),
            "body, form, deadlines": self._with_handler(self._read),
            "query, scheduler, prediction": create_app(self.config, self.classifier),
        }

    def without_metrics(self) -> ASGIApp:
        """Return the whole application, without metrics."""
        metrics = NoMetrics({"model": "stub"})
        return create_app(self.config, self.classifier, metrics=metrics)

    def _with_handler(self, handler: Handler) -> Boundary:
        guard = OriginGuard(AllowedHosts((), "127.0.0.1"), ())
        router = Router([HandlerRoute("/upload", handler, ["POST"])])
        return Boundary(router, guard, self.metrics, self.lifecycle, None)

    async def _drain(self, exchange: Exchange) -> JSONLineResponse:
        while await exchange.next_chunk():
            pass
        return JSONLineResponse({"label": "tench"})

    async def _read(self, exchange: Exchange) -> JSONLineResponse:
        with InFlightRequest(self.lifecycle, self._budget) as in_flight:
            await read_upload(exchange, in_flight, self._limits, self._budget)
            in_flight.body_received(time.monotonic() + 10)
        return JSONLineResponse({"label": "tench"})

    @asynccontextmanager
    async def connect(self, application: ASGIApp, request: bytes) -> AsyncIterator[Uploads]:
        """Yield a connection to an application that is running."""
        server = http_server(application, self.config, self.lifecycle, self.metrics, lambda: None)
        server.config.load()
        async with AsyncExitStack() as stack:
            if isinstance(application, Boundary):
                await stack.enter_async_context(application.router.lifespan_context(application))
            kind: Any = server.config.http_protocol_class
            protocol = kind(config=server.config, server_state=server.server_state, app_state={})
            transport = FakeTransport()
            protocol.connection_made(transport)
            yield Uploads(protocol, transport, request)
            protocol.connection_lost(ConnectionResetError())


async def milliseconds(uploads: Uploads, count: int) -> tuple[float, float]:
    """Return the CPU time of an upload: of this thread, and of the process."""
    process, thread = time.process_time(), time.thread_time()
    await uploads.send(count)
    return tuple(1000 * seconds / count for seconds in (time.thread_time() - thread, time.process_time() - process))  # type: ignore[return-value]


async def calls(uploads: Uploads, count: int = 20) -> int:
    """Return the number of calls of an upload, of Python functions on this thread."""
    found = 0

    def count_call(frame: FrameType, event: str, argument: object) -> None:
        nonlocal found
        found += event == "call"

    sys.setprofile(count_call)
    await uploads.send(count)
    sys.setprofile(None)
    return round(found / count)


@dataclass
class Row:
    """The figures of one application and one form: CPU milliseconds of each round, and calls."""

    times: list[tuple[float, float]] = field(default_factory=list)
    calls: int = 0

    def loop_ms(self) -> float:
        """Return the median of the event loop's time."""
        return statistics.median(loop for loop, _ in self.times)

    def process_ms(self) -> float:
        """Return the median of the process's time."""
        return statistics.median(process for _, process in self.times)


async def measure(bench: Bench, rounds: int, count: int) -> dict[tuple[str, str], Row]:
    """Measure every application with both forms, in turn."""
    found: dict[tuple[str, str], Row] = {}
    variants = {**bench.applications(), "metrics": bench.without_metrics()}
    async with AsyncExitStack() as stack:
        connections = {
            (name, form): await stack.enter_async_context(bench.connect(application, request))
            for name, application in variants.items()
            for form, request in requests().items()
        }
        whole = next(reversed(bench.applications()))
        for key, uploads in [
            *connections.items(),
            *((("log line", form), connections[whole, form]) for form in BOUNDS),
        ]:
            set_up_logging("json", "warning" if key[0] == "log line" else "info")
            await uploads.send(50)
            found[key] = Row(calls=await calls(uploads))
            connections.setdefault(key, uploads)
        gc.freeze()  # as the server does once it is ready
        for _ in range(rounds):
            for key, uploads in connections.items():
                set_up_logging("json", "warning" if key[0] == "log line" else "info")
                found[key].times.append(await milliseconds(uploads, count))
    return found


def table(found: dict[tuple[str, str], Row], form: str) -> list[str]:
    """Return lines with what each layer adds, the sum, and what log line and metrics are of it."""
    rows = [(name, row) for (name, of), row in found.items() if of == form]
    layers, parts = rows[:4], rows[4:]
    lines = [f"{form:<34}{'loop ms':>9}{'process ms':>12}{'calls':>7}"]
    loop = process = number = 0.0
    for name, row in layers:
        lines.append(_line(name, row.loop_ms() - loop, row.process_ms() - process, row.calls - number))
        loop, process, number = row.loop_ms(), row.process_ms(), row.calls
    lines.append(_line("together", loop, process, number))
    lines += [
        _line(f"  of it: {name}", loop - row.loop_ms(), process - row.process_ms(), number - row.calls)
        for name, row in parts
    ]
    return lines


def _line(name: str, loop: float, process: float, number: float) -> str:
    return f"{name:<34}{loop:>9.3f}{process:>12.3f}{number:>7.0f}"


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python benchmarks/hot_path.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=100, help="uploads of each application in a round")
    parser.add_argument("--calls", action="store_true", help="hold only the number of calls to its bound")
    add_output(parser)
    options = parser.parse_args()
    printed = PrintedResult("hot_path", parser, options)
    tune_malloc(arenas=cpu_budget(0).count + 1)
    errors = sys.stderr
    sys.stderr = ErrorStream(os.open(os.devnull, os.O_WRONLY))
    set_up_logging("json", "info")
    found = asyncio.run(measure(Bench(), options.rounds, options.count))
    sys.stderr = errors
    for form in BOUNDS:
        for line in [*table(found, form), ""]:
            printed.say(line)
    whole = {form: found["query, scheduler, prediction", form] for form in BOUNDS}
    most = max(row.calls for row in whole.values())
    slow = [form for form, row in whole.items() if row.loop_ms() > BOUNDS[form]]
    printed.write()
    print(", ".join([*(f"{form} {row.loop_ms():.2f} ms" for form, row in whole.items()), f"{most} calls"]))
    return int(most > MAX_CALLS or (bool(slow) and not options.calls))


if __name__ == "__main__":
    restart_with_huge_pages()  # as the server does
    sys.exit(main())
