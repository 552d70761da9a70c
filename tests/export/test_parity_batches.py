"""The parity check runs the model at each of its batch sizes and refuses a graph that is wrong at only one of them."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.errors import ParityError
from export.parity import BATCH_SIZES, LogitCheck

SIDE = 4
CLASSES = 7
MATRIX = np.random.default_rng(0).standard_normal((3, CLASSES)).astype(np.float32)


class Mean(nn.Module):
    """Computes logits from the mean colour."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) @ torch.from_numpy(MATRIX)


def graph(wrong_at: int | None = None, wrong: float | str = 0.0) -> onnx.ModelProto:
    """The same in ONNX; in batches of `wrong_at` images the last logits are off by `wrong`, or missing."""
    constants = {
        "axes": np.array([2, 3]),
        "matrix": MATRIX,
        "first": np.array(0),
        "size": np.array(wrong_at or 0),
        "fault": np.array(0 if isinstance(wrong, str) else wrong, np.float32),
        "none": np.array(0, np.float32),
        "last": np.arange(CLASSES) == CLASSES - 1,
        "zero": np.array([0]),
        "all": np.array([CLASSES]),
        "fewer": np.array([CLASSES - 1]),
        "one": np.array([1]),
    }
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "matrix"], ["right"]),
        helper.make_node("Shape", ["input"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Equal", ["batch", "size"], ["now"]),
        helper.make_node("Where", ["now", "fault", "none"], ["off"]),
        helper.make_node("Where", ["now", "fewer", "all"], ["width"]),
        helper.make_node("Where", ["last", "off", "none"], ["addend"]),
        helper.make_node("Add", ["right", "addend"], ["moved" if isinstance(wrong, str) else "logits"]),
    ]
    if isinstance(wrong, str):
        nodes.append(helper.make_node("Slice", ["moved", "zero", "width", "one"], ["logits"]))
    made = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "classes"])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def check(model: onnx.ModelProto) -> LogitCheck:
    made = LogitCheck(Mean().eval(), model, relative=False)
    made.compare_batches(SIDE, seed=0)
    return made


def test_a_graph_that_is_right_passes_at_each_batch_size() -> None:
    result = check(graph()).result
    assert result.batch_sizes == BATCH_SIZES == (1, 3)
    assert result.max_abs_difference <= result.tolerance == 1e-4


@pytest.mark.parametrize("size", BATCH_SIZES)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (0.01, r"max \|Δ logit\| is 0\.01, more than 0\.0001"),
        (-0.01, r"max \|Δ logit\| is 0\.01, more than 0\.0001"),
        (float("nan"), r"max \|Δ logit\| is nan, more than 0\.0001"),
        ("a class is gone", rf"PyTorch's logits are \[SIZE, {CLASSES}\], the ONNX model's \[SIZE, {CLASSES - 1}\]"),
    ],
)
def test_one_that_is_wrong_at_one_batch_size_alone_is_refused(size: int, wrong: float | str, words: str) -> None:
    with pytest.raises(ParityError, match=rf"^parity: batch of {size}: {words.replace('SIZE', str(size))}$"):
        check(graph(size, wrong))


def test_one_that_is_wrong_at_another_size_passes() -> None:
    """This shows that the faults above are at the batch size that they are meant for."""
    check(graph(2, 0.01))


def test_images_are_counted_and_their_first_classes_compared() -> None:
    made = check(graph())
    image = np.random.default_rng(1).standard_normal((1, 3, SIDE, SIDE)).astype(np.float32)
    made.compare_image(image, "one")
    made.compare_image(-image, "two")
    assert (made.result.images, made.result.top1_agreed) == (2, 2)
    assert made.result.to_card()["top1_agreement"] == 1.0
    # If all logits are equal within the tolerance, the first class may differ; it is counted.
    tied = LogitCheck(Mean().eval(), graph(1, 5e-5), relative=False)
    tied.compare_image(np.zeros((1, 3, SIDE, SIDE), np.float32), "black")
    assert (tied.result.images, tied.result.top1_agreed) == (1, 0)
    assert tied.result.max_abs_difference == pytest.approx(5e-5)
