"""DenseNet-121 from PyTorch to a self-describing ONNX file, refused unless it gives PyTorch's answers.

    python export/export_onnx.py --weights densenet121.pth --photos photographs/

Load → export → parity → write. A failed export leaves no file behind and ends with status 1 and one line.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import onnx
import onnxruntime
import torch
import torchvision

from export.errors import ExportError
from export.graph import DEFAULT_OPSET, OPSETS, export_graph
from export.models import ARCHITECTURES, Architecture
from export.parity import LogitCheck, check_photographs, find_photographs
from export.weights import Weights, build_network, default_weights, read_weights, untrained_weights

ROOT: Final = Path(__file__).resolve().parent.parent
_FAILED: Final = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the process's exit status."""
    options = _parse(arguments)
    try:
        run(options)
    except ExportError as error:
        print(f"export: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("export: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    """The export, step by step; raises `ExportError`."""
    architecture = ARCHITECTURES[options.model]
    spec = architecture.preprocessing
    photographs = find_photographs(options.photos)
    with _stage("load the weights") as note:
        weights = _load_weights(architecture, options)
        network = build_network(architecture, weights)
        note(weights.source)
    with _stage("export to ONNX") as note:
        model = export_graph(network, spec.crop, options.opset)
        note(f"opset {options.opset}, {len(model.graph.node)} nodes")
    with _stage("check parity with PyTorch") as note:
        check = LogitCheck(network, model, relative=not weights.trained)
        check.batches(spec.crop, options.seed)
        worst_pixel = check_photographs(photographs, architecture.preset, spec, check, _show_progress)
        result = check.result
        note(f"{result.pictures} photographs, max |Δ logit| {result.max_abs_difference:.2g} ≤ {result.tolerance:.2g}")
    with _stage("write the model") as note:
        parity = {**result.to_card(), "max_abs_pixel_difference": worst_pixel}
        describe(model, architecture, weights, options.opset, parity)
        write(model, options.output)
        note(f"{options.output}, {options.output.stat().st_size / 1e6:.1f} MB")


def describe(
    model: onnx.ModelProto, architecture: Architecture, weights: Weights, opset: int, parity: dict[str, Any]
) -> None:
    """Write the model card into the file's metadata, each entry's value as JSON."""
    spec = architecture.preprocessing
    card = {
        "name": architecture.name,
        "variant": "fp32",
        "weights": {"source": weights.source, "sha256": weights.sha256, "licence": weights.licence},
        "input_size": [3, spec.crop, spec.crop],
        **spec.to_card(),
        "class_count": model.graph.output[0].type.tensor_type.shape.dim[1].dim_value,
        "opset": opset,
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "parity": parity,
    }
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in sorted(card.items())})


def write(model: onnx.ModelProto, output: Path) -> None:
    """Write the file whole or not at all: beside its place first, then renamed into it."""
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(model.SerializeToString(deterministic=True))
        partial.replace(output)
    except OSError as error:
        raise ExportError(f"cannot write {output}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _load_weights(architecture: Architecture, options: argparse.Namespace) -> Weights:
    if options.untrained:
        return untrained_weights(architecture, options.seed)
    return read_weights(options.weights) if options.weights else default_weights(architecture)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python export/export_onnx.py",
        description="Export a classifier from PyTorch to ONNX; nothing is written unless it gives PyTorch's answers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", choices=sorted(ARCHITECTURES), default="densenet121", help="network to export")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="state dict, .pth or .safetensors (default: torchvision's own, from torch's cache or downloaded)",
        default=argparse.SUPPRESS,
    )
    source.add_argument("--untrained", action="store_true", help="random weights from --seed, to try the export itself")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: models/MODEL.onnx", default=argparse.SUPPRESS
    )
    parser.add_argument(
        "--opset", type=int, choices=OPSETS, metavar="N", default=DEFAULT_OPSET, help="ONNX opset, 18 to 23"
    )
    parser.add_argument(
        "--photos",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="photographs for the parity check, files or folders",
        default=[ROOT / "tests" / "data" / "photos"],
    )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="for the parity check's noise and --untrained")
    options = parser.parse_args(arguments)
    options.weights = getattr(options, "weights", None)
    options.output = getattr(options, "output", ROOT / "models" / f"{options.model}.onnx")
    return options


@contextmanager
def _stage(title: str) -> Iterator[Any]:
    """One line a stage: its title at once, then what came of it and the seconds it took."""
    print(f"{title:<28}", end="", flush=True)
    notes: list[str] = []
    started = time.perf_counter()
    try:
        yield notes.append
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{time.perf_counter() - started:6.1f} s  {' '.join(notes)}", flush=True)


def _show_progress(done: int, total: int) -> None:
    """How many photographs are done, on a terminal only, and wiped off again when all are."""
    if sys.stdout.isatty():
        text = f"{done}/{total}" if done < total else " " * (2 * len(str(total)) + 1)
        print(text, end="\b" * len(text), flush=True)


if __name__ == "__main__":
    sys.exit(main())
