"""DenseNet-121 from PyTorch to self-describing ONNX files, refused unless they give PyTorch's answers.

    python export/export_onnx.py --weights densenet121.pth --photos photographs/

Load → export → parity → int8 → gate → write. A failed export leaves no file behind and ends with status 1 and one line;
an int8 model that fails its gate is not written, and fp32 is.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

if not __package__:  # run as a file: make the project importable, and this folder's names not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import onnx
import onnxruntime
import torch
import torchvision

from export.architectures import ARCHITECTURES, Architecture
from export.console import show_progress, stage
from export.errors import CalibrationError, ExportError, GateError, QuantizationError
from export.evaluate import Comparison, compare, label_of, logits_of
from export.files import sha256_of, write_all
from export.int8 import calibration as records
from export.int8.calibration import Calibration
from export.int8.pipeline import (
    RECORDS,
    calibrate,
    choose_photographs,
    make_int8,
    require_accuracy,
    require_fit,
    require_weights,
)
from export.parity import LogitCheck, check_photographs, find_photographs, read_photograph
from export.report import Variant, class_numbers, make_report, print_table
from export.torch_to_onnx import DEFAULT_OPSET, OPSETS, export_graph
from export.weights import Weights, build_network, default_weights, read_weights, untrained_weights
from serve.printable import ArgumentParser, one_line

ROOT: Final = Path(__file__).resolve().parent.parent
_FAILED: Final = 1
_FIT_PHOTOGRAPHS: Final = ROOT / "tests" / "data" / "photos"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the process's exit status."""
    options = _parse(arguments)
    try:
        run(options)
    except (ExportError, OSError) as error:  # the latter from names that no file can have
        print(one_line(f"export: {error}"), file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("export: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    """The export, step by step; raises `ExportError`."""
    architecture = ARCHITECTURES[options.model]
    photographs = find_photographs(options.photos)
    with stage("load the weights") as note:
        weights = _load_weights(architecture, options)
        network = build_network(architecture, weights)
        note(weights.source)
    with stage("export to ONNX") as note:
        model = export_graph(network, architecture.preprocessing.crop, options.opset)
        note(f"opset {options.opset}, {len(model.graph.node)} nodes")
    with stage("check parity with PyTorch") as note:
        check = LogitCheck(network, model, relative=not weights.trained)
        check.batches(architecture.preprocessing.crop, options.seed)
        worst_pixel = check_photographs(photographs, architecture, check, show_progress)
        result = check.result
        note(f"{result.images} photographs, max |Δ logit| {result.max_abs_difference:.2g} ≤ {result.tolerance:.2g}")
    card = describe(
        model, architecture, weights, options.opset, {**result.to_card(), "max_abs_pixel_difference": worst_pixel}
    )
    outcome = _try_int8(model, architecture, weights, photographs, options)
    figures = outcome.comparison
    set_name = options.set_name or " ".join(path.resolve().name for path in options.photos)
    if options.photos == [_FIT_PHOTOGRAPHS]:
        set_name = "the project's own pictures"
    fp32_accuracy = figures and {"set": set_name, **figures.reference_card()}
    variants = [Variant("fp32", options.output, set_card(model, {**card, "accuracy": fp32_accuracy}))]
    int8_output = options.output.with_suffix(".int8.onnx")
    if outcome.model is not None and outcome.calibration is not None:
        used = {"source": outcome.calibration.source, "photographs": len(outcome.calibration.photographs)}
        int8_accuracy = figures and {"set": set_name, **figures.to_card()}
        int8_card = {**card, "variant": "int8", "calibration": used, "accuracy": int8_accuracy}
        variants.append(Variant("int8", int8_output, set_card(outcome.model, int8_card)))
    with stage("time the models"):
        side = architecture.preprocessing.crop
        report = make_report(variants, figures, weights.sha256, options.weights, side)
    with stage("write the models") as note:
        contents = {variant.path: variant.content for variant in variants}
        if options.calibrate and outcome.calibration and outcome.model:
            contents[RECORDS / f"{architecture.name}.json"] = records.encode(outcome.calibration)
        # The report says which export the models are of, so it is the last to come and the first to go.
        contents[options.output.with_suffix(".json")] = (json.dumps(report, indent=1) + "\n").encode()
        write_all(contents, {int8_output} - contents.keys())  # no earlier one may outlive this export
        note(", ".join(f"{variant.path.name} {len(variant.content) / 1e6:.1f} MB" for variant in variants))
    if outcome.refusal:
        print(one_line(f"export: no int8 model, fp32 is served: {outcome.refusal}"), file=sys.stderr)
    print_table(report["table"])


@dataclass
class _Int8:
    """What became of int8: a model that passed its gate, or why there is none."""

    model: onnx.ModelProto | None = None
    calibration: Calibration | None = None
    comparison: Comparison | None = None
    refusal: str = ""


def _try_int8(
    model: onnx.ModelProto, architecture: Architecture, weights: Weights, photographs: list[Path], options: Any
) -> _Int8:
    """Calibrate or read a calibration, quantise, and compare on photographs that were not calibrated on."""
    outcome = _Int8()
    spec = architecture.preprocessing

    def batches(paths: Sequence[Path]) -> Iterator[Any]:
        return (read_photograph(path, spec) for path in paths)

    fit_images = list(batches(find_photographs([_FIT_PHOTOGRAPHS])))
    try:
        with stage("calibrate") as note:
            if options.calibrate:
                chosen = choose_photographs(find_photographs([options.calibrate]))
                source = options.set_name or options.calibrate.resolve().name
                seen = {path.name: sha256_of(path) for path in chosen}
                outcome.calibration = Calibration(source, seen, weights.sha256)
                calibrate(model, lambda: batches(chosen), outcome.calibration, show_progress)
            else:
                outcome.calibration = records.load(RECORDS / f"{architecture.name}.json")
                require_weights(weights.sha256, outcome.calibration)
                require_fit(model, fit_images, outcome.calibration)
            note(f"{outcome.calibration.source}, {len(outcome.calibration.photographs)} photographs")
        with stage("quantise to int8") as note:
            int8 = make_int8(model, architecture, outcome.calibration, fit_images)
            note(f"{len(int8.graph.node)} nodes")
        with stage("compare int8 with fp32") as note:
            held_out = outcome.calibration.held_out(photographs)
            if not held_out:
                raise GateError(
                    "no photograph is left to measure on that int8 was not calibrated on; give more of them"
                )
            numbers = class_numbers()
            fp32_logits, int8_logits = (
                logits_of(each.SerializeToString(), batches(held_out), show_progress, len(held_out))
                for each in (model, int8)
            )
            outcome.comparison = compare(int8_logits, fp32_logits, [label_of(path, numbers) for path in held_out])
            note(f"{len(held_out)} photographs not calibrated on, {outcome.comparison.agreement:.1%} agree")
            require_accuracy(outcome.comparison)
            outcome.model = int8
    except (CalibrationError, QuantizationError, GateError) as error:
        if options.require_int8 or (options.calibrate and isinstance(error, CalibrationError)):
            raise  # the user asked for int8, or for this calibration, so its failure is the export's
        outcome.refusal = str(error)
    return outcome


def describe(
    model: onnx.ModelProto, architecture: Architecture, weights: Weights, opset: int, parity: dict[str, Any]
) -> dict[str, Any]:
    """The model card: what the file says of itself."""
    spec = architecture.preprocessing
    return {
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


def set_card(model: onnx.ModelProto, card: dict[str, Any]) -> bytes:
    """Write the card into the model's metadata, each entry's value as JSON, and serialise it."""
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in sorted(card.items())})
    return bytes(model.SerializeToString(deterministic=True))


def _load_weights(architecture: Architecture, options: argparse.Namespace) -> Weights:
    if options.untrained:
        return untrained_weights(architecture, options.seed)
    return read_weights(options.weights) if options.weights else default_weights(architecture)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python export/export_onnx.py",
        description="Export a classifier from PyTorch to ONNX, fp32 and int8; nothing is written unless it gives "
        "PyTorch's answers, and no int8 model that is less accurate than its bound.",
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
        "--output",
        type=Path,
        metavar="FILE",
        help="the fp32 model; the int8 one goes beside it as FILE's stem.int8.onnx (default: models/MODEL.onnx)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--opset", type=int, choices=OPSETS, metavar="N", default=DEFAULT_OPSET, help="ONNX opset, 18 to 23"
    )
    parser.add_argument(
        "--photos",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="photographs for the parity check and the int8 gate, files or folders; labelled where named <wnid>_…",
        default=[_FIT_PHOTOGRAPHS],
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help="record a new int8 calibration from 100 photographs spread over this folder (default: the recorded one)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--require-int8", action="store_true", help="fail where int8 does not pass its gate, rather than do without"
    )
    parser.add_argument(
        "--set-name",
        metavar="WORDS",
        help="what to call the photographs (default: the folder)",
        default=argparse.SUPPRESS,
    )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="for the parity check's noise and --untrained")
    options = parser.parse_args(arguments)
    options.weights = getattr(options, "weights", None)
    options.output = getattr(options, "output", ROOT / "models" / f"{options.model}.onnx")
    options.calibrate = getattr(options, "calibrate", None)
    options.set_name = getattr(options, "set_name", None)
    return options


if __name__ == "__main__":
    sys.exit(main())
