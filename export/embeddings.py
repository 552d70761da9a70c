"""Measures embeddings, the means of feature maps, for the model card: how long they are, and int8's beside fp32's."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from export.console import stage
from export.engines import open_session
from export.errors import ParityError
from export.evaluate import takes_pixels
from export.int8.pipeline import Int8Result
from export.onnx_graph import EMBEDDING, FEATURES, Array
from export.photographs import read_photographs, spread
from serve.errors import ModelError
from serve.imaging.normalise import to_pixels
from serve.imaging.preprocess import Preprocessing
from serve.model.features import Features

_MOST: Final = 100  # photographs; more would change no digit of the mean that the card has
_SMALLEST: Final = 1e-12  # so that an embedding of zeros has a cosine, 0


def measure_embeddings(
    model: onnx.ModelProto, results: Sequence[Int8Result], paths: Sequence[Path], spec: Preprocessing
) -> None:
    """Adds the entry `embedding` to the metadata of a network's models, if it has feature maps; prints a stage.

    Args:
        model: the fp32 model.
        results: the int8 models, whose embeddings are compared with the fp32 model's. The first is the one whose
            calibration the others have, too.
        paths: photographs. Up to 100 are taken, none of which was used for calibration if others are left.
        spec: the models' preprocessing.

    Raises:
        ParityError: the feature maps do not give the logits.
        PhotographError: a photograph cannot be read.
    """
    if not any(entry.key == FEATURES for entry in model.metadata_props):
        return
    held_out = results[0].held_out
    images = list(read_photographs(spread(held_out.paths if held_out else paths, _MOST), spec))
    with stage("measure the embeddings") as note:
        reference = _embeddings(model, images, spec)
        _add_entry(model, reference)
        note(f"{reference.shape[1]} numbers, {len(images)} photographs")
        for int8 in (result.model for result in results if result.model):
            found = _embeddings(int8, images, spec)
            cosines = cosine_similarities(found, reference)
            _add_entry(int8, found, fp32_cosine={"mean": _rounded(cosines.mean()), "lowest": _rounded(cosines.min())})
            note(f"– cosine with fp32's at least {cosines.min():.4f}")


def cosine_similarities(first: Array, second: Array) -> Array:
    """Returns the cosine of the angle between each two embeddings `[N, C]`: `[N]`, 1 where their directions agree."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines: Array = (first * second).sum(1) / np.maximum(lengths, _SMALLEST)
    return cosines


def _embeddings(model: onnx.ModelProto, images: Sequence[Array], spec: Preprocessing) -> Array:
    """Returns the embeddings `[N, C]` of images FP32 `[1, 3, S, S]`, as the server reads them from the model."""
    session = open_session(model.SerializeToString(), 0)
    pixels = takes_pixels(session)
    inputs = [{"input": to_pixels(image, spec) if pixels else image} for image in images]
    entry = json.loads(session.get_modelmeta().custom_metadata_map[FEATURES])
    names = [output.name for output in session.get_outputs()]
    try:
        features = Features.from_entry(entry, names, lambda wanted: session.run(wanted, inputs[0]))
    except ModelError as error:
        raise ParityError(f"parity: {error}") from error
    return np.stack([features.embedding(session.run([features.output], each)[0][0]) for each in inputs])


def _add_entry(model: onnx.ModelProto, embeddings: Array, **compared: Any) -> None:
    norm = _rounded(np.linalg.norm(embeddings, axis=1).mean())
    entry = {"length": embeddings.shape[1], "norm": norm, **compared}
    model.metadata_props.add(key=EMBEDDING, value=json.dumps(entry))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
