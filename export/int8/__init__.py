"""fp32 to int8: graph passes, calibration, quantization and the accuracy gate."""
