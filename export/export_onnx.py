"""Exports a classifier from PyTorch to ONNX, fp32 and int8, and checks that the files give PyTorch's answers.

    python export/export_onnx.py --weights densenet121.pth --photos photographs/

The steps: load weights → export → check parity → make int8 → pass the gate → write. A failed export prints one line,
exits with status 1 and writes no file. If only int8 fails its gate, the fp32 model is written alone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
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
from export.class_labels import IMAGENET_CLASSES, numbers_of, read_labels, saved_labels
from export.console import show_progress, stage
from export.embeddings import measure_embeddings
from export.engines import CPU, OPENVINO, int8_files
from export.errors import ExportError
from export.evaluate import label_of
from export.features import name_features
from export.files import make_directory, write_all
from export.int8 import calibration as records
from export.int8.openvino import try_openvino
from export.int8.pipeline import Int8Result, Source, try_int8
from export.known_weights import DEFAULT_ARCHITECTURE, digest_of_labels, model_name
from export.model_card import answers_card, fp32_card, int8_card, make_card, serialize
from export.options import default_output, parse, set_name_of, with_preprocessing
from export.parity import LogitCheck, check_photographs
from export.photographs import MAX_PHOTOGRAPHS, PROJECT_PHOTOGRAPHS, Photographs, find_photographs, spread
from export.report import Variant, make_report, print_table
from export.temperature import Temperature, fit, labelled_rows
from export.torch_to_onnx import export_graph
from export.weights import (
    Weights,
    build_network,
    class_count_of,
    default_weights,
    read_weights,
    recognise,
    untrained_weights,
)
from serve.model.card import MAX_NAME, NAME_RULE, is_model_name
from serve.model.labels import Label
from serve.printable import one_line, printable

_FAILED: Final = 1


@dataclass(frozen=True)
class Trained:
    """A network with its weights, and what its answers are called.

    labels: None if there are none, for ImageNet's classes for example. output: where the fp32 model goes.
    """

    architecture: Architecture
    weights: Weights
    network: nn.Module
    class_count: int
    labels: tuple[Label, ...] | None
    name: str
    output: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = parse(arguments)
    options.photos = options.photos or [PROJECT_PHOTOGRAPHS]
    try:
        run(options)
    except (ExportError, OSError) as error:  # OSError: names that no file can have
        print(one_line(f"export: {error}"), file=sys.stderr)
        for line in getattr(error, "code", ()):
            print(f"    {printable(line)}", file=sys.stderr)
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
    if options.output:
        make_directory(options.output.parent)  # before minutes of work whose files could not be written
    paths = spread(find_photographs(options.photos), MAX_PHOTOGRAPHS)
    with stage("load the weights") as note:
        trained = _load(options)
        note(", ".join(filter(None, [trained.weights.source, trained.weights.note, f"{trained.class_count} classes"])))
    numbers = numbers_of(trained.labels, trained.class_count)
    labels = [label_of(path, numbers) for path in paths]
    if options.fit_temperature:
        labelled_rows(labels)  # before minutes of work, too
    make_directory(trained.output.parent)
    with stage("export to ONNX") as note:
        model = export_graph(trained.network, trained.architecture.preprocessing.crop, options.opset)
        name_features(model)
        note(f"opset {options.opset}, {len(model.graph.node)} nodes")
    photographs, parity = _check_parity(trained, model, paths, labels, options.seed)
    temperature = Temperature(options.temperature)
    if options.fit_temperature:
        with stage("fit the temperature") as note:
            temperature = fit(photographs.logits, photographs.labels, options.activation)
            card = temperature.to_card(options.activation, photographs.logits, photographs.labels, range(len(paths)))
            error = card["expected_calibration_error"]
            note(f"{temperature.value}, expected calibration error {error['before']:.1%} → {error['after']:.1%}")
    int8 = try_int8(
        Source(model, trained.architecture, trained.weights.sha256, options.activation),
        photographs,
        own=options.photos != [PROJECT_PHOTOGRAPHS],
        calibration_folder=options.calibrate,
        set_name=options.set_name or (options.calibrate.resolve().name if options.calibrate else set_name_of(options)),
        required=options.require_int8,
    )
    results = [int8, try_openvino(int8)]
    measure_embeddings(model, results, paths, trained.architecture.preprocessing)
    card = make_card(model, trained.name, trained.architecture, trained.weights, parity)
    card |= answers_card(trained.labels, options.activation)
    variants = _variants(model, results, card, photographs, temperature, options, trained.output)
    with stage("time the models"):
        report = make_report(variants, trained.weights.sha256, options.weights, trained.architecture.preprocessing.crop)
        if options.labels:
            report["labels_sha256"] = digest_of_labels(options.labels)
    with stage("write the models") as note:
        _write(variants, int8, report, trained, bool(options.calibrate))
        note(", ".join(f"{variant.path.name} {len(variant.content) / 1e6:.1f} MB" for variant in variants))
    for remark in _remarks(trained, results, options):
        print(one_line(f"export: {remark}"), file=sys.stderr)
    print_table(report["table"])


def _load(options: argparse.Namespace) -> Trained:
    """Loads the weights and the labels, which are checked against the weights' classes."""
    if options.weights:
        weights = read_weights(options.weights)
        architecture = ARCHITECTURES[options.model] if options.model else recognise(weights)
    else:
        architecture = ARCHITECTURES[options.model or DEFAULT_ARCHITECTURE]
        weights = untrained_weights(architecture, options.seed) if options.untrained else default_weights(architecture)
    network = build_network(architecture, weights)
    count = class_count_of(network, architecture)
    if count == 1 and options.activation == "softmax":
        raise ExportError("the network has one class, whose softmax is always 1; add --activation sigmoid")
    if count == 1 and options.fit_temperature:
        raise ExportError("--fit-temperature needs photographs of two classes, and the network has one; leave it out")
    labels = None
    if options.labels:
        labels = read_labels(options.labels, count)
    elif weights.class_to_idx:
        labels = saved_labels(weights.class_to_idx, count)
    own = model_name(options.weights, str(weights.sha256)) if options.weights else architecture.name
    output = options.output or default_output(own)
    name = options.name or (architecture.name if own == architecture.name else output.stem[:MAX_NAME])
    if not is_model_name(name):
        raise ExportError(f"the model cannot be called {name!r}, as its file is; name it with --name, {NAME_RULE}")
    return Trained(with_preprocessing(architecture, options), weights, network, count, labels, name, output)


def _check_parity(
    trained: Trained, model: onnx.ModelProto, paths: Sequence[Path], labels: Sequence[int | None], seed: int
) -> tuple[Photographs, dict[str, Any]]:
    """Compares the ONNX model with PyTorch; returns its logits of the photographs and the figures for the card."""
    with stage("check parity with PyTorch") as note:
        check = LogitCheck(trained.network, model, relative=not trained.weights.trained)
        check.compare_batches(trained.architecture.preprocessing.crop, seed)
        worst_pixel = check_photographs(paths, trained.architecture, check, show_progress)
        result = check.result
        photographs = Photographs(paths, check.logits, labels)
        known = sum(label is not None for label in labels)
        note(
            f"{result.images} photographs, {known} labelled, "
            f"max |Δ logit| {result.max_abs_difference:.2g} ≤ {result.tolerance:.2g}"
        )
    return photographs, {**result.to_card(), "max_abs_pixel_difference": worst_pixel}


def _variants(
    model: onnx.ModelProto,
    results: Sequence[Int8Result],
    card: dict[str, Any],
    photographs: Photographs,
    temperature: Temperature,
    options: argparse.Namespace,
    output: Path,
) -> list[Variant]:
    """Gives each model its card; returns what to write, fp32 first."""
    set_name, activation = set_name_of(options), options.activation
    answers = temperature.to_card(activation, photographs.logits, photographs.labels, range(len(photographs.paths)))
    comparison = results[0].comparison
    content = serialize(model, {**fp32_card(card, comparison, set_name), **answers})
    variants = [Variant("fp32", output, content, comparison)]
    for int8 in results:
        if int8.model is not None and int8.held_out is not None and int8.logits is not None:
            answers = temperature.to_card(activation, int8.logits, photographs.labels, int8.held_out.rows)
            content = serialize(int8.model, {**int8_card(card, int8, set_name), **answers})
            variants.append(Variant("int8", int8_files(output)[int8.engine], content, int8.comparison, int8.engine))
    return variants


def _write(
    variants: Sequence[Variant], int8: Int8Result, report: dict[str, Any], trained: Trained, recorded: bool
) -> None:
    """Writes the models, the report and a new calibration, or nothing; int8 models of an earlier export go."""
    contents = {variant.path: variant.content for variant in variants}
    if recorded and int8.calibration and int8.model:
        contents[records.record_file(trained.architecture.name)] = records.encode(int8.calibration)
    # The report identifies the models, so it is written last and an earlier one is removed first.
    contents[trained.output.with_suffix(".json")] = (json.dumps(report, indent=1) + "\n").encode()
    write_all(contents, set(int8_files(trained.output).values()) - contents.keys())


def _remarks(trained: Trained, results: Sequence[Int8Result], options: argparse.Namespace) -> list[str]:
    """Returns what the user should know about files that were written all the same."""
    missing = {CPU: "no int8 model, fp32 is served", OPENVINO: "no int8 model for OpenVINO"}
    remarks = [f"{missing[result.engine]}: {result.refusal}" for result in results if result.refusal]
    if trained.labels is None and trained.class_count != IMAGENET_CLASSES:
        remarks.append(
            f"the model has {trained.class_count} classes and no labels; name them with --labels, or with "
            "--class-index when it is served"
        )
    if trained.weights.sequential and options.activation == "softmax":
        remarks.append("the last layer stands in a Sequential; if a Sigmoid follows it, add --activation sigmoid")
    return remarks


if __name__ == "__main__":
    sys.exit(main())
