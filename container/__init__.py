"""Lays out the container image. Used by the Dockerfile, never by the server."""
