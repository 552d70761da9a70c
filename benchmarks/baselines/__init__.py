"""The baseline: a server as it is usually written, with Flask and PyTorch."""
