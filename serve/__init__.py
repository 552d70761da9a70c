"""The image classification server: encoded images in, labels out, over HTTP.

Nothing in this package imports torch, torchvision, onnx or `export`; tests/serve/test_imports.py checks that.
"""

__version__ = "0.1.0"
