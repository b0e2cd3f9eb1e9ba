"""Bytes to values and back: frames, chunk tables and metadata, without any file access."""
