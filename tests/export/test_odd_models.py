"""Models that onnxruntime can load but the server cannot serve are refused when it starts."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from serve.errors import ModelError
from serve.model.engines import EngineOptions
from serve.model.session import load_model
from tests.tiny_model import tiny_model


def fixed_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3


def half_precision(model: onnx.ModelProto) -> None:
    cast = onnx.helper.make_node("Cast", ["input"], ["cast"], to=onnx.TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
    model.graph.node[1].input[0] = "cast"
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def pixels_in_planes(model: onnx.ModelProto) -> None:
    half_precision(model)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8


def oblong(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 192


def other_names(model: onnx.ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fixed_batch, r"inputs are .*\[3, 3, 224, 224\].*, not one 'input', FP32 \[N, 3, side, side\] or UINT8"),
        (pixels_in_planes, r"tensor\(uint8\).*, not one 'input', .* UINT8 \[N, side, side, 3\]"),
        (oblong, "'batch', 3, 192, 224"),
        (half_precision, r"tensor\(float16\)"),
        (other_names, r"outputs are .*'scores'.*, of which the first is not FP32 'logits' \[N, 1000\]"),
    ],
)
def test_a_model_with_other_inputs_or_outputs_is_refused(
    change: Callable[[onnx.ModelProto], None], words: str, tmp_path: Path
) -> None:
    model = onnx.load_from_string(tiny_model())
    change(model)
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path / "odd.onnx", EngineOptions())
