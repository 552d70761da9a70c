"""Each peer's server as its documentation shows it, with the same weights and the same preprocessing."""
