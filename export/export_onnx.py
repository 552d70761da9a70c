"""Exports a classifier from PyTorch to ONNX, fp32 and int8, and checks that the files give PyTorch's answers.

    python export/export_onnx.py --weights densenet121.pth --photos photographs/

The steps: load weights → export → check parity → make int8 → pass the gate → write. A failed export prints one line,
exits with status 1 and writes no file. If only int8 fails its gate, the fp32 model is written alone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

if not __package__:  # run by path: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

if __name__ == "__main__":
    from export.environment import require_packages

    require_packages(__file__)

import onnx
from torch import nn

from export.architectures import ARCHITECTURES, Architecture
from export.console import show_progress, stage
from export.engines import CPU, OPENVINO
from export.errors import ExportError
from export.files import ROOT, make_directory, write_all
from export.int8 import calibration as records
from export.int8.openvino import try_openvino
from export.int8.pipeline import Int8Result, try_int8
from export.model_card import fp32_card, int8_card, make_card, serialize
from export.parity import LogitCheck, check_photographs
from export.photographs import PROJECT_PHOTOGRAPHS, find_photographs
from export.report import Variant, make_report, print_table
from export.torch_to_onnx import DEFAULT_OPSET, OPSETS, export_graph
from export.weights import Weights, build_network, default_weights, read_weights, untrained_weights
from serve.printable import ArgumentParser, one_line

_FAILED: Final = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = _parse(arguments)
    try:
        run(options)
    except (ExportError, OSError) as error:  # OSError: names that no file can have
        print(one_line(f"export: {error}"), file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("export: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    """Exports as the command line says.

    Raises:
        ExportError: nothing was written.
    """
    architecture = ARCHITECTURES[options.model]
    make_directory(options.output.parent)  # before minutes of work whose files could not be written
    photographs = find_photographs(options.photos)
    with stage("load the weights") as note:
        weights = _load_weights(architecture, options)
        network = build_network(architecture, weights)
        note(weights.source)
    with stage("export to ONNX") as note:
        model = export_graph(network, architecture.preprocessing.crop, options.opset)
        note(f"opset {options.opset}, {len(model.graph.node)} nodes")
    parity = _check_parity(network, model, architecture, photographs, options.seed, relative=not weights.trained)
    card = make_card(model, architecture, weights, options.opset, parity)
    int8 = try_int8(
        model,
        architecture,
        weights.sha256,
        photographs,
        calibration_folder=options.calibrate,
        set_name=options.set_name,
        required=options.require_int8,
    )
    openvino = try_openvino(int8)
    variants = _variants(model, [int8, openvino], card, options)
    with stage("time the models"):
        side = architecture.preprocessing.crop
        report = make_report(variants, weights.sha256, options.weights, side)
    with stage("write the models") as note:
        _write(variants, int8, report, options)
        note(", ".join(f"{variant.path.name} {len(variant.content) / 1e6:.1f} MB" for variant in variants))
    if int8.refusal:
        print(one_line(f"export: no int8 model, fp32 is served: {int8.refusal}"), file=sys.stderr)
    if openvino.refusal:
        print(one_line(f"export: no int8 model for OpenVINO: {openvino.refusal}"), file=sys.stderr)
    print_table(report["table"])


def _load_weights(architecture: Architecture, options: argparse.Namespace) -> Weights:
    if options.untrained:
        return untrained_weights(architecture, options.seed)
    return read_weights(options.weights) if options.weights else default_weights(architecture)


def _check_parity(
    network: nn.Module,
    model: onnx.ModelProto,
    architecture: Architecture,
    photographs: Sequence[Path],
    seed: int,
    relative: bool,
) -> dict[str, Any]:
    """Compares the ONNX model with PyTorch and returns the figures for the model card."""
    with stage("check parity with PyTorch") as note:
        check = LogitCheck(network, model, relative)
        check.compare_batches(architecture.preprocessing.crop, seed)
        worst_pixel = check_photographs(photographs, architecture, check, show_progress)
        result = check.result
        note(f"{result.images} photographs, max |Δ logit| {result.max_abs_difference:.2g} ≤ {result.tolerance:.2g}")
    return {**result.to_card(), "max_abs_pixel_difference": worst_pixel}


def _variants(
    model: onnx.ModelProto, results: Sequence[Int8Result], card: dict[str, Any], options: argparse.Namespace
) -> list[Variant]:
    """Gives each model its card; returns what to write, fp32 first."""
    set_name = options.set_name or " ".join(path.resolve().name for path in options.photos)
    if options.photos == [PROJECT_PHOTOGRAPHS]:
        set_name = "the project's own pictures"
    content = serialize(model, fp32_card(card, results[0].comparison, set_name))
    variants = [Variant("fp32", options.output, content, results[0].comparison)]
    for int8 in results:
        if int8.model is not None:
            content = serialize(int8.model, int8_card(card, int8, set_name))
            variants.append(
                Variant("int8", _int8_files(options.output)[int8.engine], content, int8.comparison, int8.engine)
            )
    return variants


def _write(variants: Sequence[Variant], int8: Int8Result, report: dict[str, Any], options: argparse.Namespace) -> None:
    """Writes the models, the report and a new calibration, or nothing; int8 models of an earlier export go."""
    contents = {variant.path: variant.content for variant in variants}
    if options.calibrate and int8.calibration and int8.model:
        contents[records.record_file(options.model)] = records.encode(int8.calibration)
    # The report identifies the models, so it is written last and an earlier one is removed first.
    contents[options.output.with_suffix(".json")] = (json.dumps(report, indent=1) + "\n").encode()
    write_all(contents, set(_int8_files(options.output).values()) - contents.keys())


def _int8_files(output: Path) -> dict[str, Path]:
    """Returns where the int8 model of each engine goes."""
    return {CPU: output.with_suffix(".int8.onnx"), OPENVINO: output.with_suffix(".qdq.onnx")}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python export/export_onnx.py",
        description="Export a classifier from PyTorch to ONNX, fp32 and int8. Files are written only if they give "
        "PyTorch's answers, and int8 only if it is accurate enough.",
    )
    parser.add_argument(
        "--model", choices=sorted(ARCHITECTURES), default="densenet121", help="network to export (default: %(default)s)"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="state dict, .pth or .safetensors (default: torchvision's, from torch's cache or downloaded)",
    )
    source.add_argument("--untrained", action="store_true", help="use random weights from --seed, to try the export")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write the fp32 model; int8 goes beside it as STEM.int8.onnx and, for OpenVINO, "
        "STEM.qdq.onnx (default: models/MODEL.onnx)",
    )
    parser.add_argument(
        "--opset",
        type=int,
        choices=OPSETS,
        metavar="N",
        default=DEFAULT_OPSET,
        help="ONNX opset, 18 to 23 (default: %(default)s)",
    )
    parser.add_argument(
        "--photos",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="photographs for the parity check and the int8 gate, files or folders; labelled if named <wnid>_… "
        "(default: the project's own)",
        default=[PROJECT_PHOTOGRAPHS],
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help="record a new int8 calibration on 100 photographs of this folder (default: use the recorded one)",
    )
    parser.add_argument("--require-int8", action="store_true", help="fail if int8 does not pass its gate")
    parser.add_argument(
        "--set-name", metavar="WORDS", help="what to call the set of photographs (default: the folder's name)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        default=0,
        help="for --untrained and the noise of the parity check (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    options.output = options.output or ROOT / "models" / f"{options.model}.onnx"
    return options


if __name__ == "__main__":
    sys.exit(main())
