"""Exports a PyTorch network to an ONNX graph with a dynamic batch axis, without traces of the exporting machine."""

import contextlib
import io
import logging
import warnings
from typing import Final

import onnx
import torch
from google.protobuf.message import Message  # type: ignore[import-untyped]
from torch import nn

from export.errors import ExportError

OPSETS: Final = range(18, 24)
DEFAULT_OPSET: Final = 20
_BATCH: Final = torch.export.Dim("batch", min=1, max=64)  # the exporter wants a bound; the graph has none
_MACHINE_FIELDS: Final = ("metadata_props", "doc_string")  # the exporter writes stack traces with paths into them


def export_graph(network: nn.Module, input_side: int, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """Exports a network with input `input` FP32 `[N, 3, input_side, input_side]` and output `logits` `[N, classes]`.

    Args:
        network: in inference mode.
        input_side: height and width of the input, pixels.
        opset: the ONNX opset, one of `OPSETS`.

    Raises:
        ExportError: PyTorch returned no model, or one of another opset.
    """
    example = torch.zeros(2, 3, input_side, input_side)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    # The exporter prints its own progress to standard output, where the export prints a line for each stage.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: _BATCH},),
            input_names=["input"],
            output_names=["logits"],
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned no model")
    model = program.model_proto
    made_opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    if made_opset != opset:
        raise ExportError(f"torch.onnx.export used opset {made_opset} instead of {opset}; choose another with --opset")
    strip(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def strip(message: Message) -> None:
    """Removes the exporter's notes from a message and all messages in it: file names, stack traces, source lines."""
    names = message.DESCRIPTOR.fields_by_name
    for field in _MACHINE_FIELDS:
        if field in names:
            message.ClearField(field)
    for descriptor, value in message.ListFields():
        if descriptor.type != descriptor.TYPE_MESSAGE:
            continue
        for child in value if descriptor.is_repeated else (value,):
            strip(child)
