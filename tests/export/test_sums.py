"""The scales of sums in the embedded model are odd multiples of one unit, so that every kernel rounds alike."""

import numpy as np
import onnx
from onnx import numpy_helper

from serve.config.settings import ROOT


def test_no_sum_of_the_embedded_model_is_near_a_rounding_tie() -> None:
    model = onnx.load(ROOT / "models" / "efficientnet_lite0.onnx")
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    adds = [node for node in model.graph.node if node.op_type == "QLinearAdd"]
    assert len(adds) == 9
    values = np.arange(256)
    for node in adds:
        (a, zero_a), (b, zero_b), (result, _) = (
            (float(constants[node.input[place]]), int(constants[node.input[place + 1]])) for place in (1, 4, 6)
        )
        sums = ((values[:, None] - zero_a) * a + (values - zero_b) * b) / result
        assert np.abs(sums - np.floor(sums) - 0.5).min() > 8e-4
