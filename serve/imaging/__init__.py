"""Encoded bytes to the tensor that the model takes, within limits."""
