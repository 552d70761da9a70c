"""Sockets, HTTP/1.1 and processes."""
