"""The model files to run, their inputs, and the control, whose weights can saturate."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from export.int8.quant_params import LARGEST_BIAS
from export.photographs import find_photographs
from serve.errors import RequestError
from serve.imaging.decode import decode, open_image
from serve.imaging.limits import ImageLimits
from serve.imaging.normalise import normalise
from serve.imaging.preprocess import Preprocessing
from serve.imaging.resize import crop
from serve.model.ort_sessions import INPUT_NAME, OUTPUT_NAME

Array = npt.NDArray[Any]
IMAGES = 10


def with_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Makes the last uint8 tensor the only output beside the logits: the one that the float tail dequantizes."""
    model = _copy(model)
    del model.graph.output[1:]  # the feature maps
    last = [node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"][-1]
    model.graph.output.append(helper.make_tensor_value_info(last, TensorProto.UINT8, None))
    return model


def without_guard(model: onnx.ModelProto) -> onnx.ModelProto:
    """Scales the weights of each output channel to ±127, as quantizers usually do, so that pairs can saturate."""
    model = _copy(model)
    constants = {entry.name: entry for entry in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "QLinearConv":
            continue
        weights, scales, bias = (numpy_helper.to_array(constants[node.input[place]]) for place in (3, 4, 8))
        largest = np.abs(weights.astype(np.float64)).reshape(len(weights), -1).max(1)
        widened = 127 / np.maximum(
            np.maximum(largest, 1), 127 * np.abs(bias.astype(np.float64)) / LARGEST_BIAS
        )  # the bias still fits 32 bits
        for place, values in (
            (3, np.rint(weights * widened[:, None, None, None]).astype(np.int8)),
            (4, (scales / widened).astype(np.float32)),
            (8, np.rint(bias * widened).astype(np.int32)),
        ):
            name = node.input[place]
            constants[name].CopyFrom(numpy_helper.from_array(values, name))
    return model


def optimized_nodes(model: Path, scratch: Path) -> list[tuple[str, ...]]:
    """Returns the nodes that onnxruntime runs for a file, after all its fusions: operator, inputs and outputs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(scratch)
    options.log_severity_level = 4  # it warns that the written file fits this CPU only
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return [(node.domain, node.op_type, *node.input, "→", *node.output) for node in onnx.load(scratch).graph.node]


def served_logits(model: Path, inputs: Array) -> Array:
    """Returns the logits of the file as it is served, FP32 `[images, classes]`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run([OUTPUT_NAME], {INPUT_NAME: image[None]})[0] for image in inputs])


def inputs_of(model: onnx.ModelProto, spec: Preprocessing, folders: list[Path]) -> Array:
    """Returns ten images in the form that the model's input has: FP32 `[10, 3, S, S]` or uint8 `[10, S, S, 3]`."""
    pixels = _pixels(spec, folders)
    given = next(value for value in model.graph.input if value.name == INPUT_NAME)
    if given.type.tensor_type.elem_type == TensorProto.UINT8:
        return pixels
    return np.concatenate([normalise(image.tobytes(), spec) for image in pixels])


def _pixels(spec: Preprocessing, folders: list[Path]) -> Array:
    """Returns ten different crops, uint8 `[10, S, S, 3]`, spread evenly over the images of each folder in turn."""
    found: dict[bytes, Array] = {}
    for folder in folders:
        paths = find_photographs([folder])
        for path in paths[:: max(1, len(paths) // IMAGES)]:
            try:
                image = crop(decode(open_image(path.read_bytes(), spec, ImageLimits(2**40, max_frames=2**40))), spec)
            except RequestError:  # some test pictures are meant to be refused
                continue
            found.setdefault(image.tobytes(), np.asarray(image))
            if len(found) == IMAGES:
                return np.stack(list(found.values()))
    raise ValueError(f"{', '.join(map(str, folders))}: fewer than {IMAGES} different images")


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
