"""The runtime: an encoded picture in, ImageNet labels out, over HTTP.

Nothing in this package imports torch, torchvision, onnx or `export`; `tests/serve/test_imports.py` holds it to that.
"""

__version__ = "0.1.0"
