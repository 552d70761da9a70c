"""Each peer's server as its documentation shows it, with the same model files and the same preprocessing."""
