"""Sockets, HTTP/1.1, signals and worker processes."""
