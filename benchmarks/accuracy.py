"""Measure accuracy and speed of the exported models on a folder of photographs, with fp32 PyTorch as the reference.

    python benchmarks/accuracy.py --photos DIR --weights densenet121.pth

Photographs are named `<wnid>_<label>.JPEG`, or are in folders named by wnid; those without a label count for agreement
only. Photographs that the int8 model was calibrated on are left out. "if clear" is the agreement on those for which
PyTorch's first two classes are at least 0.1 of probability apart.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

if not __package__:  # started by its path
    import_module("harness.launch").start("export")

import numpy as np
import onnx
import torch

from benchmarks.harness.machine import ROOT
from benchmarks.reporting.records import PrintedResult, add_output
from export.architectures import ARCHITECTURES, Architecture
from export.console import show_progress
from export.engines import CPU, ENTRY, OPENVINO
from export.errors import ExportError, PhotographError, WeightsError
from export.evaluate import class_numbers, compare, cpu, label_of, logits_of, measure_latency
from export.int8 import calibration as records
from export.parity import reference_image
from export.photographs import find_photographs, read_photograph
from export.weights import Weights, build_network, default_weights, read_weights
from serve.model.card import report_file
from serve.printable import ArgumentParser, one_line, printable

_HEADER: Final = (
    f"{'model':<24} {'MB':>6} {'ms 1 thr':>9} {'ms 2 thr':>9} {'top-1':>7} {'loss':>6} {'agrees':>7} "
    f"{'if clear':>8} {'max |Δ|':>8} {'mean |Δ|':>9}"
)


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python benchmarks/accuracy.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="labelled photographs")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="state dict the models were exported from (default: the one that was given to the export)",
    )
    parser.add_argument(
        "--models",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="fp32 and int8 model files (default: models/densenet121*.onnx)",
    )
    add_output(parser)
    options = parser.parse_args()
    printed = PrintedResult("accuracy", parser, options)
    models = options.models or sorted((ROOT / "models").glob("densenet121*.onnx"))
    try:
        run(options.photos, options.weights, models, printed.say)
    except ExportError as error:
        print(one_line(f"accuracy: {error}"), file=sys.stderr)
        return 1
    printed.write()
    return 0


def run(photos: Path, weights_file: Path | None, models: list[Path], say: Callable[[str], None]) -> None:
    """Measure, and pass the table's lines to `say`.

    Raises:
        ExportError: Models, weights or photographs are missing or do not belong together.
    """
    if not models:
        raise WeightsError("no models to measure; make them with 'make export', or name files with --models")
    absent = [str(path) for path in models if not path.is_file()]
    if absent:
        raise WeightsError(f"no such model: {', '.join(absent)}")
    contents = {path.name: path.read_bytes() for path in models}
    cards = [{entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props} for path in models]
    if len({(card["name"], card["weights"]["sha256"]) for card in cards}) != 1:
        raise WeightsError("the models are not of one network and one set of weights; measure them separately")
    architecture = ARCHITECTURES[cards[0].get("architecture", cards[0]["name"])]
    given = weights_file or _weights_of_export(models[0])
    weights = read_weights(given) if given else default_weights(architecture)
    _require_same(weights, cards[0])
    found = _find(photos)
    paths = held_out(found, architecture)
    if not paths:
        raise PhotographError(f"photographs {photos}: the int8 model was calibrated on all of them")
    numbers = class_numbers()
    labels = [label_of(path, numbers) for path in paths]

    network = build_network(architecture, weights)
    preset = architecture.preset
    rows = []
    with torch.no_grad():
        for done, path in enumerate(paths, start=1):
            rows.append(network(preset(reference_image(path))[None]).numpy())
            show_progress(done, len(paths))
    reference = np.concatenate(rows)

    def batches() -> Iterator[Any]:
        return (read_photograph(path, architecture.preprocessing) for path in paths)

    one, two = (measure_latency(contents, architecture.preprocessing.crop, threads) for threads in (1, 2))
    say(
        f"{len(paths)} photographs, {sum(label is not None for label in labels)} of them labelled; "
        f"{len(found) - len(paths)} left out, calibrated on or unreadable; "
        f"{', '.join([cpu()['model'], *cpu()['features']])}"
    )
    say("")
    say(_HEADER)
    say(_row("PyTorch fp32 (reference)", None, None, None, compare(reference, reference, labels)))
    answers = {}
    for (name, content), card in zip(contents.items(), cards, strict=True):
        logits = logits_of(content, batches(), architecture.preprocessing, show_progress, len(paths))
        answers[card["variant"], card.get(ENTRY, CPU)] = logits
        say(_row(name, len(content) / 1e6, one[name], two[name], compare(logits, reference, labels)))
    if answers.keys() >= {("int8", CPU), ("int8", OPENVINO)}:
        figures = compare(answers["int8", OPENVINO], answers["int8", CPU], labels)
        say("")
        say(
            f"int8 on OpenVINO gives the class of int8 on the CPU provider on {figures.agreement:.2%}, "
            f"{figures.clear_agreement:.2%} if clear; max |Δ| {figures.max_abs_difference:.2f}, "
            f"mean |Δ| {figures.mean_abs_difference:.3f}"
        )


def held_out(found: list[Path], architecture: Architecture) -> list[Path]:
    """The photographs that the int8 model was not calibrated on and that can be read."""
    record = records.load(records.record_file(architecture.name))
    return [path for path in record.held_out(found) if _readable(path, architecture)]


def _require_same(weights: Weights, card: dict[str, Any]) -> None:
    if weights.sha256 != card["weights"]["sha256"]:
        raise WeightsError(
            f"the models were exported from {card['weights']['source']}, not from {weights.source}; name those weights "
            "with --weights"
        )


def _find(photos: Path) -> list[Path]:
    """Photographs in a folder and in its folders."""
    inner = sorted(path for path in photos.iterdir() if path.is_dir()) if photos.is_dir() else []
    found: list[Path] = []
    for folder in (photos, *inner):
        with contextlib.suppress(PhotographError):  # raised below if no folder has photographs
            found += find_photographs([folder])
    return found or find_photographs([photos])


def _readable(path: Path, architecture: Architecture) -> bool:
    try:
        read_photograph(path, architecture.preprocessing)
    except PhotographError as error:
        print(one_line(f"accuracy: left out: {error}"), file=sys.stderr)
        return False
    return True


def _weights_of_export(model: Path) -> Path | None:
    """The state dict that the model was exported from, if its report names one that still exists."""
    try:
        path = Path(json.loads(report_file(model).read_text(encoding="utf-8"))["weights_file"])
    except (OSError, ValueError, KeyError):
        return None
    return path if path.is_file() else None


def _row(name: str, megabytes: float | None, one: float | None, two: float | None, figures: Any) -> str:
    def format_value(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    return (
        f"{printable(name):<24} {format_value(megabytes, '.1f'):>6} "
        f"{format_value(one, '.1f'):>9} {format_value(two, '.1f'):>9} "
        f"{format_value(figures.top1, '.2%'):>7} {format_value(figures.top1_loss, '.2%'):>6} {figures.agreement:>7.2%} "
        f"{format_value(figures.clear_agreement, '.2%'):>8} {figures.max_abs_difference:>8.2f} "
        f"{figures.mean_abs_difference:>9.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
