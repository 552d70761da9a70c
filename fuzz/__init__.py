"""Coverage-guided fuzz targets (atheris): bytes in, an answer or one of the project's own errors out."""
