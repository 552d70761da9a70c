"""Quantizes an exported fp32 model to int8: calibration, graph passes, quantization and the accuracy gate."""
