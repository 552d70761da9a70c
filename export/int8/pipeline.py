"""From the exported fp32 model to the int8 model: calibrate, rewrite, quantize, and pass the gate."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from export.architectures import ARCHITECTURES, Architecture
from export.console import Progress, show_progress, stage
from export.engines import CPU
from export.errors import CalibrationError, GateError, QuantizationError
from export.evaluate import Comparison
from export.features import name_features
from export.files import sha256_of
from export.int8 import calibration as records
from export.int8.calibration import Calibration, Ranges
from export.int8.choice import choose_part, choose_photographs
from export.int8.gate import require_accuracy, require_fit, require_unchanged
from export.int8.graph_passes import chain_concats, clip_batchnorms, equalize_channels, merge_average_pools
from export.int8.held_out import HeldOut
from export.int8.pixel_input import fold_normalisation
from export.int8.quantize import quantize
from export.int8.rounding import choose_rounding, observe_covariances
from export.onnx_graph import Array, Graph
from export.photographs import PROJECT_PHOTOGRAPHS, Photographs, find_photographs, read_photographs
from serve.imaging.normalise import to_pixels


@dataclass
class Int8Result:
    """The int8 model of an engine if it passed its gate, else the reason why there is none.

    comparison: int8 compared with fp32; None if an earlier step failed. from_integers: the same with the int8 model of
    `CPU`, for other engines. held_out, logits: what was compared on, and int8's answers there `[N, classes]`.
    """

    engine: str = CPU
    model: onnx.ModelProto | None = None
    calibration: Calibration | None = None
    comparison: Comparison | None = None
    from_integers: Comparison | None = None
    held_out: HeldOut | None = None
    logits: Array | None = None
    refusal: str = ""


@dataclass(frozen=True)
class Source:
    """What int8 is made from.

    model: the exported fp32 model. architecture: what it was exported from. weights_sha256: of the weights' file, None
    for untrained weights. activation: softmax or sigmoid.
    """

    model: onnx.ModelProto
    architecture: Architecture
    weights_sha256: str | None
    activation: str = "softmax"


def try_int8(
    source: Source,
    photographs: Photographs,
    own: bool,
    calibration_folder: Path | None = None,
    set_name: str = "",
    required: bool = False,
) -> Int8Result:
    """Calibrates or reads the recorded calibration, quantizes, and compares int8 with fp32; prints each stage.

    Args:
        source: the fp32 model and where it is from.
        photographs: to compare on; those used for calibration are left out.
        own: whether they are the user's, and may be used for calibration if no calibration of the weights is recorded.
        calibration_folder: photographs for a new calibration; without it the recorded one is used.
        set_name: what to call the photographs that are calibrated on.
        required: raise if there is no int8 model.

    Raises:
        CalibrationError: the new calibration failed, or the recorded one did and int8 is required.
        QuantizationError, GateError: the model was refused and int8 is required.
        PhotographError: a photograph cannot be read.
    """
    result = Int8Result()
    spec = source.architecture.preprocessing
    images = list(read_photographs(find_photographs([PROJECT_PHOTOGRAPHS]), spec))
    try:
        recorded = None if calibration_folder else _recorded(source)
        chosen: Sequence[Path] = ()
        if calibration_folder:
            chosen = choose_photographs(find_photographs([calibration_folder]))
        elif not recorded:
            chosen = choose_part(photographs.paths if own else [])
        with stage("calibrate") as note:
            if recorded:
                require_fit(source.model, images, recorded)
            result.calibration = recorded or _new_calibration(source, chosen, set_name)
            note(f"{result.calibration.source}, {len(result.calibration.photographs)} photographs")
        with stage("quantize to int8") as note:
            int8 = make_int8(source.model, source.architecture, result.calibration, images)
            name_features(int8)
            note(f"{len(int8.graph.node)} nodes")
        with stage("compare int8 with fp32") as note:
            result.held_out = HeldOut.of(photographs, result.calibration, spec, source.activation)
            result.logits = result.held_out.answers(int8)
            result.comparison = result.held_out.compare(result.logits, result.held_out.fp32)
            note(f"{result.comparison.photographs} held-out photographs, {result.comparison.agreement:.1%} agree")
            require_accuracy(result.comparison, source.activation)
            result.model = int8
    except (CalibrationError, QuantizationError, GateError) as error:
        if required or (calibration_folder and isinstance(error, CalibrationError)):
            raise
        result.refusal = str(error)
    return result


def rewrite(graph: Graph, ranges: Ranges) -> None:
    """Prepares the graph for 8 bits without changing an answer.

    Args:
        graph: the exported graph; it is changed in place.
        ranges: as `observe_ranges` returns them.

    Raises:
        QuantizationError: the inputs of a Concat cannot be given a common scale.
    """
    if not equalize_channels(graph, ranges) and graph.of_type("Concat"):
        raise QuantizationError(
            "the inputs of a Concat cannot have a common scale: not only BatchNorms read them, or the calibration "
            "has no ranges for them"
        )
    clip_batchnorms(graph)
    merge_average_pools(graph)
    chain_concats(graph)


def make_int8(
    model: onnx.ModelProto, architecture: Architecture, calibration: Calibration, images: Sequence[Array] = ()
) -> onnx.ModelProto:
    """Rewrites and quantizes an exported fp32 model.

    Args:
        model: the exported model.
        architecture: what it was exported from.
        calibration: of this model.
        images: FP32 `[1, 3, S, S]` each, made from pixels; the rewritten graph must give the same answers on them.

    Raises:
        QuantizationError: an operator is not supported, the calibration lacks a tensor, or answers changed.
    """
    graph, spec = Graph(model), architecture.preprocessing
    rewrite(graph, calibration.ranges)
    calibration = fold_normalisation(graph, calibration, spec)
    if images:
        require_unchanged(model, graph.to_model(), images, spec)
    return quantize(graph, calibration, architecture.classifier_bits)


def calibrate(
    model: onnx.ModelProto, batches: Callable[[], Iterable[Array]], calibration: Calibration, progress: Progress
) -> None:
    """Fills in the statistics of `calibration`, rounded as in its file, so that both give the same int8 model.

    Args:
        model: the exported fp32 model.
        batches: returns the images FP32 `[1, 3, S, S]`; called twice.
        calibration: what to fill in.
        progress: called after each image.
    """
    count = len(calibration.photographs)
    graph = Graph(model)
    seen = records.observe_ranges(graph, batches(), lambda done: progress(done, 2 * count))
    low, high = (records.rounded({name: ends[end] for name, ends in seen.items()}) for end in (0, 1))
    calibration.ranges = {name: (low[name], high[name]) for name in seen}
    rewrite(graph, calibration.ranges)
    means, active = records.observe_means(graph, batches(), lambda done: progress(count + done, 2 * count))
    calibration.means, calibration.active = records.rounded(means), records.rounded(active)


def record_rounding(
    model: onnx.ModelProto,
    architecture: Architecture,
    batches: Callable[[], Iterable[Array]],
    calibration: Calibration,
    progress: Progress,
) -> None:
    """Chooses how weights are rounded on the images that `calibration` was filled in with, and adds it.

    Args:
        model: the exported fp32 model.
        architecture: what it was exported from.
        batches: returns the images FP32 `[1, 3, S, S]`.
        calibration: with ranges and means.
        progress: called after each image.
    """
    count, spec = len(calibration.photographs), architecture.preprocessing
    graph = Graph(model)
    rewrite(graph, calibration.ranges)
    folded = fold_normalisation(graph, calibration, spec)
    pixels = (to_pixels(image, spec) for image in batches())
    covariances = observe_covariances(graph, pixels, folded.means, lambda done: progress(done, count))

    def choose(conv: str, scaled: Array) -> Array:
        calibration.rounding[conv] = choose_rounding(scaled, covariances.pop(conv))
        return calibration.rounding[conv]

    quantize(graph, folded, architecture.classifier_bits, choose)


def _recorded(source: Source) -> Calibration | None:
    """Returns the project's calibration if it is of these weights and the preprocessing that they were trained with."""
    usual = ARCHITECTURES.get(source.architecture.name)
    file = records.record_file(source.architecture.name)
    if usual is None or source.architecture.preprocessing != usual.preprocessing or not file.exists():
        return None
    calibration = records.load(file)
    return calibration if calibration.weights_sha256 == source.weights_sha256 else None


def _new_calibration(source: Source, chosen: Sequence[Path], set_name: str) -> Calibration:
    used: dict[str, str] = {}
    for path in chosen:  # class folders often have files of one name
        used[str(path) if path.name in used else path.name] = sha256_of(path)
    calibration = Calibration(set_name, used, source.weights_sha256)
    batches = partial(read_photographs, chosen, source.architecture.preprocessing)
    calibrate(source.model, batches, calibration, show_progress)
    record_rounding(source.model, source.architecture, batches, calibration, show_progress)
    return calibration
