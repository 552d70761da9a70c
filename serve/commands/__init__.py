"""The commands of `python -m serve`, one module each, and what they share."""
