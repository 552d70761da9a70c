"""Flags, environment and TOML to one Config."""
