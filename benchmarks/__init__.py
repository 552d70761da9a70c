"""Benchmarks: the server beside its baseline and its peers, and the figures behind its design decisions.

The commands are the files of this folder; `harness` measures, `reporting` records, judges and draws.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before anything imports onnxruntime
