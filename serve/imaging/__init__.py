"""Decodes images within limits and turns them into the model's input."""
