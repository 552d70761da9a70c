"""Making the model files: torch lives here and nowhere else."""

import os

# Set before anything here imports onnxruntime, whose Linux wheel sends usage statistics otherwise.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
