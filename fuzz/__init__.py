"""Coverage-guided fuzz targets for atheris: bytes in, an answer or one of the project's errors out."""
