"""Each peer's server as its own documentation shows one, around the same model files and the same preprocessing."""
