"""One picture at a time: our fp32 and int8 models on onnxruntime beside OpenVINO running an int8 model made by nncf.

    python benchmarks/openvino_engine.py --photos DIR

Needs an environment of its own: pip install openvino nncf onnxruntime onnx pillow numpy. The engines take turns in one
process, so that a noisy machine is noisy for all; at each turn 50 ms of rest and three untimed runs come first.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
_TURNS: Final = 9
_TIMED: Final = 15
_UNTIMED: Final = 3
_CALIBRATION: Final = 100

Engine = Callable[[], Any]


def main() -> int:
    """Run the command: once for each number of threads, in a process pinned to as many CPUs."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/openvino_engine.py", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--photos", type=Path, required=True, metavar="DIR", help="photographs for nncf to calibrate on"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="one run only (default: one with 1 thread, one with 2)"
    )
    options = parser.parse_args()
    if options.threads:
        _compare(options.photos, options.threads)
        return 0
    for threads in ("1", "2"):
        command = [sys.executable, __file__, "--photos", str(options.photos), "--threads", threads]
        if subprocess.run(command, check=False).returncode:
            return 1
    return 0


def _compare(photos: Path, threads: int) -> None:
    os.sched_setaffinity(0, set(range(threads)))  # before any library makes its threads
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # OpenVINO's and nncf's usage statistics
    sys.path.insert(0, str(ROOT))
    from serve.preprocess import Preprocessing, decode, open_image, to_input

    spec = Preprocessing(256, "bilinear", 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    paths = sorted(path for path in photos.iterdir() if path.is_file())

    def read(path: Path) -> Any:
        return to_input(decode(open_image(path.read_bytes(), spec, 2**40)), spec)

    step = max(1, len(paths) // _CALIBRATION)
    picture = read(paths[1])
    models = ROOT / "models"
    engines = {
        "onnxruntime fp32": _onnxruntime(models / "densenet121.onnx", threads, picture),
        "onnxruntime int8, ours": _onnxruntime(models / "densenet121.int8.onnx", threads, picture),
        "OpenVINO int8, nncf": _openvino(
            models / "densenet121.onnx", threads, picture, [read(path) for path in paths[::step]]
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(_TURNS):
        for name, run in engines.items():
            time.sleep(0.05)
            for position in range(_UNTIMED + _TIMED):
                started = time.perf_counter()
                run()
                if position >= _UNTIMED:
                    times[name].append((time.perf_counter() - started) * 1000)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(
            f"{threads} thread{'s' * (threads > 1)}  {name:<24} p50 {median:6.2f} ms, min {min(times[name]):6.2f} ms, "
            f"{median / medians['OpenVINO int8, nncf']:.3f} of OpenVINO's"
        )


def _onnxruntime(model: Path, threads: int, picture: Any) -> Engine:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["logits"], {"input": picture})


def _openvino(model: Path, threads: int, picture: Any, calibration: list[Any]) -> Engine:
    import nncf
    import openvino

    network = openvino.Core().read_model(model)
    network.reshape({"input": [1, *picture.shape[1:]]})
    dataset = nncf.Dataset(calibration, lambda batch: {"input": batch})
    network = nncf.quantize(network, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=len(calibration))
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(network, "CPU", settings)
    request = compiled.create_infer_request()
    return lambda: request.infer({0: picture}, share_inputs=True, share_outputs=True)


if __name__ == "__main__":
    sys.exit(main())
