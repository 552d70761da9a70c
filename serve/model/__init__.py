"""Loads a model and classifies images with it; the only package that imports onnxruntime."""
