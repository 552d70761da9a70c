"""Gives an int8 model that takes pixels the input that the peers' documentation shows: normalised floats.

    .venv/export/bin/python -m benchmarks.harness.float_input --model models/densenet121.int8.onnx --output peers.onnx

Taking pixels is a step of our own export, which users of other servers do not have. The quantized weights stay as they
are.
"""

import json
import sys
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.harness.errors import CannotMeasure
from export.model_card import serialize
from export.onnx_graph import Graph
from serve.errors import ModelError
from serve.imaging.preprocess import Preprocessing
from serve.printable import ArgumentParser, one_line

_LEVELS: Final = np.arange(256, dtype=np.float32)
_TO_PIXELS: Final = (0, 2, 3, 1)  # from [N, 3, S, S] to [N, S, S, 3]


def main() -> int:
    """Run the command and return its exit status."""
    parser = ArgumentParser(prog="python -m benchmarks.harness.float_input", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, metavar="ONNX", help="an int8 model that takes pixels")
    parser.add_argument("--output", type=Path, required=True, metavar="ONNX", help="where to write the other one")
    options = parser.parse_args()
    try:
        content = take_floats(onnx.load(options.model))
    except (CannotMeasure, ModelError) as error:
        print(one_line(f"float_input: {options.model.name}: {error}"), file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(content)
    return 0


def take_floats(model: onnx.ModelProto) -> bytes:
    """Change a model's input from 8-bit RGB `[N, S, S, 3]` to FP32 `[N, 3, S, S]`, normalised as its metadata says.

    A QuantizeLinear with a scale and a zero point for each channel gives back the pixels that the floats were made
    from, and a Transpose puts the channels last. The zero point is `255 · mean` rounded to an integer. That is less
    than a half off, so the rounding of QuantizeLinear removes it, and the logits are the same to the last bit.

    Returns:
        The model file's content.

    Raises:
        CannotMeasure: The model takes something else, or some pixel would become another.
        ModelError: Its metadata lacks the normalisation.
    """
    if model.graph.input[0].type.tensor_type.elem_type != TensorProto.UINT8:
        raise CannotMeasure("it does not take pixels; export it again with make export WEIGHTS=densenet121.pth")
    card = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    spec = Preprocessing.from_card(card)
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    scale, zero_point = 1 / (255 * std), np.rint(255 * mean).astype(np.uint8)
    normalised = (_LEVELS[:, None] / 255 - mean) / std
    if not np.array_equal(np.rint(normalised / scale) + zero_point, _LEVELS[:, None].repeat(3, 1)):
        raise CannotMeasure(f"with the mean {list(spec.mean)} floats do not give back the pixels they were made from")
    graph = Graph(model)
    for node in graph.consumers("input"):
        node.input[:] = ["input.pixels" if name == "input" else name for name in node.input]
    graph.constants |= {"input.scale": scale, "input.zero_point": zero_point}
    graph.nodes[:0] = [
        helper.make_node("QuantizeLinear", ["input", "input.scale", "input.zero_point"], ["input.planes"], axis=1),
        helper.make_node("Transpose", ["input.planes"], ["input.pixels"], perm=_TO_PIXELS),
    ]
    side = spec.crop
    graph.inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, side, side])]
    return serialize(graph.to_model(), card)


if __name__ == "__main__":
    sys.exit(main())
