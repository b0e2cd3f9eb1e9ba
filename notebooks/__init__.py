"""Runs the notebooks of the documentation and takes their pictures: ``python -m notebooks``."""
