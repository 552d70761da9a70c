"""From the int8 model to one for OpenVINO, measured on OpenVINO itself."""

import json

import onnx

from export.console import stage
from export.engines import ENTRY, OPENVINO, require_openvino
from export.errors import EngineError, GateError, QuantizationError
from export.features import name_features
from export.int8.gate import require_accuracy
from export.int8.pipeline import Int8Result
from export.int8.qdq import to_qdq


def try_openvino(int8: Int8Result) -> Int8Result:
    """Rewrites the int8 model for OpenVINO and holds it to the same gate; prints each stage.

    Args:
        int8: as `try_int8` returns it. If it has no model, the result has none and no reason either.
    """
    result = Int8Result(engine=OPENVINO, calibration=int8.calibration, held_out=int8.held_out)
    if int8.model is None or int8.held_out is None or int8.logits is None:
        return result
    try:
        require_openvino()
        with stage("rewrite int8 for OpenVINO") as note:
            qdq = to_qdq(int8.model)
            onnx.helper.set_model_props(qdq, {ENTRY: json.dumps(OPENVINO)})
            name_features(qdq)
            note(f"{len(qdq.graph.node)} nodes")
        with stage("compare it with fp32") as note:
            result.logits = int8.held_out.answers(qdq)
            result.comparison = int8.held_out.compare(result.logits, int8.held_out.fp32)
            result.from_integers = int8.held_out.compare(result.logits, int8.logits)
            note(
                f"{result.comparison.agreement:.1%} agree with fp32, {result.from_integers.agreement:.1%} with the "
                "integer model"
            )
            require_accuracy(result.comparison, int8.held_out.activation)
            result.model = qdq
    except (EngineError, QuantizationError, GateError) as error:
        result.refusal = str(error)
    return result
