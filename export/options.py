"""The command line of the export."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from export.architectures import ARCHITECTURES, Architecture
from export.files import ROOT
from export.known_weights import DEFAULT_ARCHITECTURE
from export.photographs import PROJECT_PHOTOGRAPHS
from export.torch_to_onnx import DEFAULT_OPSET, OPSETS
from serve.errors import ModelError
from serve.imaging.preprocess import INTERPOLATIONS, MAX_SIDE, Preprocessing
from serve.model.card import NAME_RULE, is_model_name
from serve.model.postprocess import ACTIVATIONS, COLDEST, HOTTEST
from serve.printable import ArgumentParser

_SMALLEST_CROP: Final = 32  # a DenseNet halves its input five times


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line; ends the process with status 2 on a mistake."""
    parser = ArgumentParser(
        prog="python export/export_onnx.py",
        description="Export a classifier from PyTorch to ONNX, fp32 and int8. Files are written only if they give "
        "PyTorch's answers, and int8 only if it is accurate enough.",
    )
    _add_network(parser)
    _add_answers(parser)
    _add_preprocessing(parser)
    _add_photographs(parser)
    options = parser.parse_args(arguments)
    try:
        with_preprocessing(ARCHITECTURES[options.model or DEFAULT_ARCHITECTURE], options)
    except ModelError as error:
        parser.error(str(error).removeprefix("its metadata has "))
    return options


def set_name_of(options: argparse.Namespace) -> str:
    """Returns what to call the set of photographs."""
    if options.photos == [PROJECT_PHOTOGRAPHS]:
        return "the project's own pictures"
    return options.set_name or " ".join(path.resolve().name for path in options.photos)


def with_preprocessing(architecture: Architecture, options: argparse.Namespace) -> Architecture:
    """Returns the architecture with the preprocessing that the command line asks for.

    Raises:
        ModelError: the values do not go together.
    """
    names = ("resize", "interpolation", "crop", "mean", "std")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if not given:
        return architecture
    spec = Preprocessing.from_card({**architecture.preprocessing.to_card(), **given})
    return replace(architecture, preprocessing=spec)


def default_output(name: str) -> Path:
    """Returns where the fp32 model of this name is written."""
    return ROOT / "models" / f"{name}.onnx"


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        choices=sorted(ARCHITECTURES),
        help=f"network to export (default: the one that the weights are of; without weights {DEFAULT_ARCHITECTURE})",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights, .pth, .pt, .ckpt or .safetensors, with any number of classes (default: torchvision's, from "
        "torch's cache or downloaded)",
    )
    source.add_argument("--untrained", action="store_true", help="use random weights from --seed, to try the export")
    parser.add_argument(
        "--output",
        type=_onnx_file,
        metavar="FILE",
        help="where to write the fp32 model; int8 goes beside it as STEM.int8.onnx and, for OpenVINO, "
        "STEM.qdq.onnx (default: models/STEM.onnx, with the stem of the weights' file; models/MODEL.onnx for published "
        "weights)",
    )
    parser.add_argument(
        "--name", type=_name, metavar="NAME", help="what answers call the model (default: the stem of its file)"
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
        "--seed",
        type=int,
        metavar="N",
        default=0,
        help="for --untrained and the noise of the parity check (default: %(default)s)",
    )


def _add_answers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answers")
    group.add_argument(
        "--labels",
        type=Path,
        metavar="PATH",
        help="labels of the classes: .txt with one a line, .json, .csv, or a folder of class folders (default: "
        "class_to_idx in the weights' file, if it has one)",
    )
    group.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        default="softmax",
        help="softmax: one class of all; sigmoid: each class for itself (default: %(default)s)",
    )
    temperature = group.add_mutually_exclusive_group()
    temperature.add_argument(
        "--temperature",
        type=_between(COLDEST, HOTTEST, f"a number from {COLDEST} to {HOTTEST}"),
        metavar="T",
        help="divide logits by this before the activation (default: 1)",
    )
    temperature.add_argument(
        "--fit-temperature", action="store_true", help="find the temperature on the labelled photographs of --photos"
    )


def _add_preprocessing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("preprocessing, as in training (default: that of torchvision's weights)")
    mean = _between(0, 1, "between 0 and 1; divide means of values up to 255 by 255")
    group.add_argument(
        "--mean", type=mean, nargs=3, metavar=("R", "G", "B"), help="means of the channels, where white is 1"
    )
    group.add_argument("--std", type=float, nargs=3, metavar=("R", "G", "B"), help="standard deviations")
    group.add_argument("--resize", type=int, metavar="PIXELS", help="shorter side after resizing")
    crop = _between(_SMALLEST_CROP, MAX_SIDE, f"a whole number from {_SMALLEST_CROP} to {MAX_SIDE}", int)
    group.add_argument("--crop", type=crop, metavar="PIXELS", help="side of the centre crop, the network's input")
    group.add_argument("--interpolation", choices=INTERPOLATIONS, help="how images are resized")


def _add_photographs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("photographs and int8")
    group.add_argument(
        "--photos",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="photographs, files or folders, for the parity check and for int8: with weights of your own, it is "
        "calibrated on a part of them and compared with fp32 on the rest. The class is known of those in a folder "
        "called as a label, and of those named LABEL_… (default: the project's own, which are too few for int8)",
    )
    group.add_argument(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help="record a new int8 calibration of the project on 100 photographs of this folder",
    )
    group.add_argument("--require-int8", action="store_true", help="fail if int8 does not pass its gate")
    group.add_argument(
        "--set-name", metavar="WORDS", help="what to call the set of photographs (default: the folder's name)"
    )


def _name(text: str) -> str:
    if is_model_name(text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not {NAME_RULE}")


def _onnx_file(text: str) -> Path:
    if text.endswith(".onnx"):
        return Path(text)
    raise argparse.ArgumentTypeError(f"{text!r} does not end in .onnx")


def _between(low: float, high: float, words: str, kind: type[float] = float) -> Callable[[str], float]:
    """Returns a parser of numbers from `low` to `high`, which `words` describe."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text} is not {words}")

    return parse
