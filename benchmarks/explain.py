"""Compare the time of an explanation with that of an upload, in turns on one connection, and say what the PNG takes.

    python benchmarks/explain.py

Exits with 1 if a p50 is over its limit: an explanation in JSON may take 1.1 times as long as an upload, as a PNG twice.
"""

import io
import statistics
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Final

if not __package__:  # started by its path
    import_module("harness.launch").start("runtime")

import numpy as np
from PIL import Image

from benchmarks.harness.figures import spread
from benchmarks.harness.http_client import Connection, build_request
from benchmarks.harness.machine import ROOT, RUNTIME
from benchmarks.harness.servers import ServerSpec, running
from benchmarks.reporting.records import PrintedResult, add_output
from serve.imaging.png import encode_png
from serve.printable import ArgumentParser

PHOTO: Final = ROOT / "tests" / "data" / "photos" / "rocket.jpg"
LIMITS: Final = {"explain, JSON": 1.1, "explain, PNG": 2.0}
_TIMEOUT: Final = 30.0
_WARM_UPS: Final = 10


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python benchmarks/explain.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="auto")
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=60, help="requests of each kind in a round")
    add_output(parser)
    options = parser.parse_args()
    printed = PrintedResult("explain", parser, options)
    settings = ("--port", "{port}", "--server-timing", "on", "--log-level", "warning", "--model", options.model)
    photo = options.photo.read_bytes()
    with running(ServerSpec("ours", (str(RUNTIME), "-m", "serve", *settings)), photo, "") as server:
        name = server.model_card() or options.model
        host = f"127.0.0.1:{server.port}"
        upload, explain = (build_request(host, path, photo, "multipart:file") for path in ("/upload", "/explain"))
        as_json = explain.replace(b"\r\n", b"\r\nAccept: application/json\r\n", 1)
        kinds = {"upload": upload, "explain, JSON": as_json, "explain, PNG": explain}
        connection = Connection("127.0.0.1", server.port, _TIMEOUT)
        rounds = [measure(connection, kinds, options.count) for _ in range(options.rounds)]
        pixels = np.asarray(Image.open(io.BytesIO(connection.exchange(explain).body)))
        connection.close()
    p50 = {kind: [statistics.median(total for total, _ in each[kind]) for each in rounds] for kind in kinds}
    look = {kind: statistics.median(look for each in rounds for _, look in each[kind]) for kind in kinds}
    ratios = {kind: [time / base for time, base in zip(p50[kind], p50["upload"], strict=True)] for kind in LIMITS}
    for kind in kinds:
        found = spread(ratios.get(kind, [1.0]))
        against = f", {found['median']:.3f} × upload ({found['min']:.3f}–{found['max']:.3f})" if kind in LIMITS else ""
        printed.say(f"{kind:<14}p50 {statistics.median(p50[kind]):6.2f} ms{against}")
    encoding, whole = encoding_ms(pixels), statistics.median(p50["explain, PNG"])
    printed.say(
        f"the PNG: {look['explain, PNG'] - look['explain, JSON']:.2f} ms for drawing and encoding, of which encoding "
        f"alone takes {encoding:.2f} ms, {encoding / whole:.0%} of the answer's time"
    )
    met = {kind: statistics.median(ratios[kind]) <= limit for kind, limit in LIMITS.items()}
    printed.write(ms=p50, ratios=ratios, look_ms=look, encoding_ms=encoding, model=name)
    print(", ".join(f"{kind} ≤ {limit}: {'met' if met[kind] else 'MISSED'}" for kind, limit in LIMITS.items()))
    return int(not all(met.values()))


def measure(connection: Connection, kinds: dict[str, bytes], count: int) -> dict[str, list[tuple[float, float]]]:
    """Send requests of each kind in turns; return for each its milliseconds in all and those of the stage `look`."""
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for number in range(_WARM_UPS + count):
        for kind, request in kinds.items():
            started = time.perf_counter()
            answer = connection.exchange(request)
            took = 1000 * (time.perf_counter() - started)
            if answer.status != 200:
                raise SystemExit(f"explain: {kind}: status {answer.status}, {answer.body[:200]!r}")
            if number >= _WARM_UPS:
                found[kind].append((took, answer.stages.get("look", 0.0)))
    return found


def encoding_ms(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", times: int = 51) -> float:
    """Return the median milliseconds of writing pixels as a PNG."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        encode_png(pixels)
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


if __name__ == "__main__":
    sys.exit(main())
