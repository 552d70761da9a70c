"""Our fp32 model → OpenVINO's int8 by nncf, the engine that peers.py puts beside ours.

    .venv/peers/openvino/bin/python benchmarks/harness/openvino_engine.py --photos DIR --output openvino.xml

nncf as its documentation has it for a convolutional network: the mixed preset, 100 of the photographs to calibrate on.
"""

import sys
from pathlib import Path
from typing import Final

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.peer_servers.preprocess import preprocess
from serve.printable import ArgumentParser, one_line

_MODEL: Final = Path(__file__).resolve().parents[2] / "models/densenet121.onnx"
_CALIBRATION: Final = 100


def main() -> int:
    """Run the command; the process's exit status."""
    parser = ArgumentParser(
        prog="python benchmarks/harness/openvino_engine.py", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="photographs to calibrate on")
    parser.add_argument("--output", type=Path, required=True, metavar="XML", help="where to write the model")
    options = parser.parse_args()
    paths = sorted(path for path in options.photos.iterdir() if path.suffix.lower() in (".jpeg", ".jpg"))
    if not paths:
        print(one_line(f"openvino_engine: no photographs (.jpg, .jpeg) in {options.photos}"), file=sys.stderr)
        return 1
    images = [preprocess(path.read_bytes()) for path in paths[:: max(1, len(paths) // _CALIBRATION)]]
    # OpenVINO's and nncf's usage statistics go through a package that they do without where it is absent.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import nncf
    import openvino

    network = openvino.Core().read_model(_MODEL)
    network.reshape({"input": list(images[0].shape)})
    dataset = nncf.Dataset(images, lambda image: {"input": image})
    quantized = nncf.quantize(
        network, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=min(_CALIBRATION, len(images))
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(quantized, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
