"""Measures one engine in a process of its own, in the environment it is installed in: JSON lines in, JSON lines out.

    {"seconds": 1.0, "untimed": 3, "min_answers": 20}  →  {"ms": [11.2, 11.3, …], "seconds": 1.01}

Classifies one image at a time, as a server's worker would. The first output line names the image's class.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.model_input import input_of
from benchmarks.peer_servers.preprocess import crop, load_labels, name_of, normalise
from serve.printable import ArgumentParser

# OpenVINO and nncf send usage statistics through this package, and work without it.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

Engine = Callable[[], Any]  # classifies the image


def main() -> int:
    """Answer one line after another until standard input ends."""
    parser = ArgumentParser(prog="python -m benchmarks.harness.engine_worker")
    parser.add_argument("--engine", choices=("pytorch", "onnxruntime", "plug-in", "openvino"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--model", help="weights, .onnx or .xml, as the engine reads them")
    options = parser.parse_args()
    pixels = crop(options.photo.read_bytes())
    engines: dict[str, Callable[[Any, int, Any], Engine]] = {
        "pytorch": _pytorch,
        "onnxruntime": _onnxruntime,
        "plug-in": partial(_onnxruntime, plug_in=True),
        "openvino": _openvino,
    }
    run = engines[options.engine](options.model, options.threads, pixels)
    _write_line(name_of(run(), load_labels()))
    for line in sys.stdin:
        _write_line(_measure(run, **json.loads(line)))
    return 0


def _measure(run: Engine, seconds: float, untimed: int, min_answers: int) -> dict[str, Any]:
    for _ in range(untimed):
        run()
    times: list[float] = []
    began = ended = time.perf_counter()
    while ended - began < seconds or len(times) < min_answers:
        started = time.perf_counter()
        run()
        ended = time.perf_counter()
        times.append(round((ended - started) * 1000, 4))
    return {"ms": times, "seconds": ended - began}


def _pytorch(weights: str | None, threads: int, pixels: Any) -> Engine:
    import torch

    from benchmarks.baselines.densenet import load_densenet

    torch.set_num_threads(threads)
    network = load_densenet(weights)
    image = torch.from_numpy(normalise(pixels))

    def run() -> Any:
        with torch.no_grad():
            return network(image).numpy()

    return run


def _onnxruntime(model: str, threads: int, pixels: Any, plug_in: bool = False) -> Engine:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if plug_in:
        from serve.model.openvino_plugin import use_openvino

        use_openvino(options, 1, 1, threads)
    session = ort.InferenceSession(model, options, providers=None if plug_in else ["CPUExecutionProvider"])
    image = input_of(session, pixels)
    return lambda: session.run(["logits"], {"input": image})[0]


def _openvino(model: str, threads: int, pixels: Any) -> Engine:
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    image = normalise(pixels)
    return lambda: request.infer({0: image}, share_inputs=True, share_outputs=True)[0]


def _write_line(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    sys.exit(main())
