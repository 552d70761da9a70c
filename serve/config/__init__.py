"""Parses flags, environment and TOML file into one `Config`."""
