"""Logs, metrics and request IDs."""
