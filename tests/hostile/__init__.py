"""Hostile requests and images. They are generated, so that no such file is part of the repository."""
