"""What an onnxruntime session's model takes: pixels, as our int8 models do, or normalised floats."""

from typing import Any

from benchmarks.peer_servers.preprocess import normalise


def input_of(session: Any, pixels: Any) -> Any:
    """The model's input for 8-bit RGB `[1, 224, 224, 3]`: the pixels themselves, or as of `normalise`."""
    return pixels if session.get_inputs()[0].type == "tensor(uint8)" else normalise(pixels)
