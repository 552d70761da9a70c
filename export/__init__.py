"""Exports classifiers from PyTorch to ONNX. Torch is imported here and nowhere else."""

import os

# onnxruntime's Linux wheel sends usage statistics by default, so this is set before anything imports it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
