"""What the container image is made of: used by the Dockerfile, never by the server."""
